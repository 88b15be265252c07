# Whether and how CUDA is built. Sets OUTBOARD_HAS_CUDA. nvcc is taken from CUDACXX, from the nvcc
# wheel of the Python environment, from CUDA_HOME, from PATH or from the usual folder.

set(OUTBOARD_HAS_CUDA OFF)
if(NOT OUTBOARD_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "[outboard] OUTBOARD_CUDA is ${OUTBOARD_CUDA}; use AUTO, ON or OFF")
endif()

if(NOT OUTBOARD_CUDA STREQUAL "OFF" AND NOT CMAKE_CUDA_COMPILER)
  outboard_python_package_dir(nvidia.cu13 outboard_cuda_wheel)
  find_program(OUTBOARD_NVCC nvcc
    HINTS "${outboard_cuda_wheel}" ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
    PATH_SUFFIXES bin)
  mark_as_advanced(OUTBOARD_NVCC)
  if(OUTBOARD_NVCC AND NOT DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER "${OUTBOARD_NVCC}")
  endif()
endif()

if(OUTBOARD_CUDA STREQUAL "ON" AND NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "[outboard] OUTBOARD_CUDA=ON, and no nvcc; set CUDACXX to its path")
elseif(OUTBOARD_BUILD_TORCH AND NOT OUTBOARD_LIB_c10_cuda)
  if(OUTBOARD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "[outboard] OUTBOARD_CUDA=ON, and the torch in ${OUTBOARD_TORCH_ROOT} was "
                        "built without CUDA; install a CUDA build of torch")
  endif()
elseif(NOT OUTBOARD_CUDA STREQUAL "OFF" AND (CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX}))
  set(OUTBOARD_HAS_CUDA ON)
endif()

# Sets `out` to the architectures of this machine's GPUs, e.g. 90, or to what a development build
# without a GPU compiles for.
function(outboard_local_architectures out)
  set(architectures "90-real;90-virtual")
  find_program(OUTBOARD_NVIDIA_SMI nvidia-smi)
  mark_as_advanced(OUTBOARD_NVIDIA_SMI)
  if(OUTBOARD_NVIDIA_SMI)
    execute_process(COMMAND "${OUTBOARD_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE capabilities RESULT_VARIABLE result ERROR_QUIET)
    if(result EQUAL 0 AND capabilities MATCHES "^[0-9]+\\.[0-9]")
      string(REPLACE "." "" capabilities "${capabilities}")
      string(REGEX MATCHALL "[0-9]+" architectures "${capabilities}")
      list(REMOVE_DUPLICATES architectures)
    endif()
  endif()
  set(${out} "${architectures}" PARENT_SCOPE)
endfunction()

if(OUTBOARD_HAS_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    if(SKBUILD)  # a wheel serves every GPU
      set(CMAKE_CUDA_ARCHITECTURES "80;86;89;90;100;120")
    else()
      outboard_local_architectures(CMAKE_CUDA_ARCHITECTURES)
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER MATCHES "^(.*/nvidia/cu13)/bin/nvcc$")
    # The wheel keeps its libraries in lib, where its nvcc does not look, and has no libcudart.so.
    set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -L${CMAKE_MATCH_1}/lib")
    set(CUDA_CUDART "${CMAKE_MATCH_1}/lib/libcudart.so.13" CACHE FILEPATH "The CUDA runtime")
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  # Bit-equality with the CPU kernels: no contraction, correctly rounded division and square root,
  # subnormals kept.
  target_compile_options(
    outboard_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;-prec-div=true;-prec-sqrt=true;-ftz=false;--expt-relaxed-constexpr>")
endif()
