# Reads the two catalogues, include/outboard/rules.def and formats.def: the stems of the files that
# each line stands for, and the generated headers that include all of them. A new line re-runs CMake.

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

# Writes a header that includes one file for every stem: `name` is how sources include it.
function(outboard_generate_includes name prefix suffix)
  set(text "// Generated from the catalogues in include/outboard; do not edit.\n#pragma once\n")
  foreach(stem IN LISTS ARGN)
    string(APPEND text "#include \"${prefix}${stem}${suffix}\"\n")
  endforeach()
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/generated/${name}" CONTENT "${text}" @ONLY)
endfunction()

outboard_generate_includes(outboard_rules.h outboard/rules/ .h ${OUTBOARD_RULES})
outboard_generate_includes(outboard_codecs.h quant/ .h ${OUTBOARD_FORMATS})
outboard_generate_includes(outboard_device_codecs.cuh quant/ .cuh ${OUTBOARD_FORMATS})
target_include_directories(outboard_flags INTERFACE "${PROJECT_BINARY_DIR}/generated")
