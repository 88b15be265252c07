# One static library per folder, compiled the same way.

# Sets `out` to the files of a folder that match the patterns, re-checked at every build. A name says
# what a file needs: *.cu and cuda_* are left out without CUDA, no_cuda* with it.
function(outboard_sources out)
  list(TRANSFORM ARGN PREPEND "${CMAKE_CURRENT_SOURCE_DIR}/")
  file(GLOB files CONFIGURE_DEPENDS ${ARGN})
  if(OUTBOARD_HAS_CUDA)
    list(FILTER files EXCLUDE REGEX "/no_cuda[^/]*$")
  else()
    list(FILTER files EXCLUDE REGEX "/cuda_[^/]*$|\\.cu$")
  endif()
  set(${out} "${files}" PARENT_SCOPE)
endfunction()

# Adds the library outboard_<name>, alias outboard::<name>.
#   SOURCES  its files; absolute, or relative to the folder
#   PUBLIC   the folders' libraries it builds on
#   EXTERNAL libraries from outside the project, passed on to the shared library too
#   OPTIONS  compile options of its C++ files
function(outboard_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;PUBLIC;EXTERNAL;OPTIONS")
  set(target outboard_${name})
  foreach(source IN LISTS arg_SOURCES)
    if(NOT EXISTS "${source}")
      message(FATAL_ERROR "[outboard] a catalogue in include/outboard asks for ${source}, which "
                          "does not exist; write it, or remove the line")
    endif()
  endforeach()
  add_library(${target} STATIC ${arg_SOURCES})
  add_library(outboard::${name} ALIAS ${target})
  target_include_directories(${target} PUBLIC "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}")
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${arg_OPTIONS}>")
  target_link_libraries(${target} PUBLIC outboard_flags ${arg_PUBLIC} PRIVATE ${arg_EXTERNAL})
  if(arg_EXTERNAL)
    target_link_libraries(outboard_dependencies INTERFACE ${arg_EXTERNAL})
  endif()
endfunction()
