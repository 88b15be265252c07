# How every target is compiled: the language level, the floating-point contract, warnings and
# sanitizers. What a single folder needs beyond this stays in that folder.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(OUTBOARD_CCACHE ccache)
mark_as_advanced(OUTBOARD_CCACHE)
if(OUTBOARD_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${OUTBOARD_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${OUTBOARD_CCACHE}")
endif()

add_library(outboard_flags INTERFACE)

# Results must not depend on the compiler's choice to fuse a multiply and an add: the kernels say
# themselves where they fuse.
target_compile_options(
  outboard_flags
  INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;-Wall;-Wextra>"
            "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-ffp-contract=off>")
if(OUTBOARD_WERROR)
  target_compile_options(outboard_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()

# Kernels keep vectors in structs, which vectors of unknown length cannot be in: 64-bit ARM runs NEON.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  target_compile_definitions(
    outboard_flags
    INTERFACE "HWY_DISABLED_TARGETS=(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
endif()

if(OUTBOARD_SANITIZE)
  list(JOIN OUTBOARD_SANITIZE "," sanitizers)
  target_compile_options(
    outboard_flags INTERFACE -fsanitize=${sanitizers} -fno-omit-frame-pointer
                             -fno-sanitize-recover=all)
  target_link_options(outboard_flags INTERFACE -fsanitize=${sanitizers})
endif()

# What the folders' libraries link to outside the project, filled by the folders themselves: the
# shared library is made of their objects and takes the dependencies from here.
add_library(outboard_dependencies INTERFACE)
