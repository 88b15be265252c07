# Reads the two catalogues, include/outboard/rules.def and formats.def: the stems of the files that
# each line stands for. A new line re-runs CMake.

# Sets `out` to the stems of a catalogue: `OUTBOARD_RULE(Lion, lion)` gives `lion`.
function(outboard_read_catalogue file macro out)
  set(path "${PROJECT_SOURCE_DIR}/include/outboard/${file}")
  set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${path}")
  file(STRINGS "${path}" lines REGEX "^${macro}\\(")
  set(stems "")
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "^${macro}\\([A-Za-z0-9_]+, *([a-z0-9_]+)\\)")
      message(FATAL_ERROR "[outboard] ${file}: cannot read '${line}'; write ${macro}(Name, stem)")
    endif()
    list(APPEND stems "${CMAKE_MATCH_1}")
  endforeach()
  set(${out} "${stems}" PARENT_SCOPE)
endfunction()

outboard_read_catalogue(rules.def OUTBOARD_RULE OUTBOARD_RULES)
outboard_read_catalogue(formats.def OUTBOARD_FORMAT OUTBOARD_FORMATS)
