# The target outboard::torch: libtorch's headers and libraries, taken from OUTBOARD_TORCH_ROOT, from
# a torch on CMAKE_PREFIX_PATH or in Torch_DIR, or from the torch of the Python interpreter.
#
# This is not find_package(Torch), which refuses to configure a torch built with CUDA on a machine
# without a CUDA toolkit, and probes for a GPU. Nothing is cached: a build folder follows its
# environment. Installed beside outboardConfig.cmake.

if(TARGET outboard::torch)
  return()
endif()

if(NOT OUTBOARD_TORCH_ROOT)
  set(outboard_torch_hints "")
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH Torch_DIR)  # .../torch/share/cmake[/Torch]
    list(APPEND outboard_torch_hints "${prefix}" "${prefix}/../.." "${prefix}/../../..")
  endforeach()
  if(NOT COMMAND outboard_python_package_dir)
    include("${CMAKE_CURRENT_LIST_DIR}/outboard_python.cmake")
  endif()
  outboard_python_package_dir(torch outboard_torch_package)
  find_path(OUTBOARD_TORCH_ROOT include/torch/csrc/api/include/torch/torch.h
            HINTS ${outboard_torch_hints} "${outboard_torch_package}" NO_DEFAULT_PATH NO_CACHE)
endif()
if(NOT OUTBOARD_TORCH_ROOT)
  message(FATAL_ERROR
    "[outboard] no libtorch: neither CMAKE_PREFIX_PATH nor the Python interpreter "
    "(${Python_EXECUTABLE}) has torch; pip install torch, or set OUTBOARD_TORCH_ROOT to libtorch's "
    "folder, or configure with -DOUTBOARD_BUILD_TORCH=OFF")
endif()

foreach(name IN ITEMS torch torch_cpu c10)
  find_library(OUTBOARD_LIB_${name} ${name} PATHS "${OUTBOARD_TORCH_ROOT}/lib"
               NO_DEFAULT_PATH NO_CACHE REQUIRED)
endforeach()
foreach(name IN ITEMS torch_cuda c10_cuda)
  find_library(OUTBOARD_LIB_${name} ${name} PATHS "${OUTBOARD_TORCH_ROOT}/lib"
               NO_DEFAULT_PATH NO_CACHE)
endforeach()

add_library(outboard::torch INTERFACE IMPORTED)
target_include_directories(
  outboard::torch INTERFACE "${OUTBOARD_TORCH_ROOT}/include"
                            "${OUTBOARD_TORCH_ROOT}/include/torch/csrc/api/include")
# libtorch.so defines nothing: it is what loads the CUDA part, and must stay although unused.
target_link_libraries(
  outboard::torch INTERFACE "-Wl,--push-state,--no-as-needed,${OUTBOARD_LIB_torch},--pop-state"
                            "${OUTBOARD_LIB_torch_cpu}" "${OUTBOARD_LIB_c10}")
target_compile_features(outboard::torch INTERFACE cxx_std_20)
