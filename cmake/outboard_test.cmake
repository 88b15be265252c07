# One GoogleTest binary per folder, and the checks that need no test code: each header compiles
# alone, what must not compile does not.
include(GoogleTest)

# Adds the binary test_<folder> from tests/<folder>/*.cc and *.cu (cuda_* only with CUDA, no_cuda_*
# only without), linked to LIBRARIES. Tests whose name holds
# Gpu or Cuda, or all of them with GPU, carry the label gpu, those with Slow slow, the others cpu.
function(outboard_test folder)
  cmake_parse_arguments(PARSE_ARGV 1 arg "GPU" "" "LIBRARIES")
  outboard_sources(sources ${folder}/*.cc ${folder}/*.cu)
  outboard_sources(shared support/*.cc)
  if(OUTBOARD_HAS_CUDA)
    list(FILTER sources EXCLUDE REGEX "/no_cuda_[^/]*$")
  else()
    list(FILTER sources EXCLUDE REGEX "/cuda_[^/]*$")
  endif()
  if(NOT sources OR NOT folder IN_LIST OUTBOARD_TEST_FOLDERS)
    return()
  endif()
  set(target test_${folder})
  add_executable(${target} ${sources} ${shared})
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")
  target_compile_definitions(
    ${target} PRIVATE OUTBOARD_GOLDEN_DIR="${CMAKE_CURRENT_SOURCE_DIR}/golden")
  target_link_libraries(${target} PRIVATE outboard_flags ${arg_LIBRARIES} GTest::gmock
                                          GTest::gtest_main)
  if(OUTBOARD_SANITIZE)  # the tests' own code, which takes longer to compile so than to run
    target_compile_options(${target} PRIVATE -O1)
  endif()
  set(on_gpu "*Gpu*:*Cuda*")
  set(options DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 120)
  if(arg_GPU)
    gtest_discover_tests(${target} ${options} PROPERTIES LABELS gpu TIMEOUT 600)
  else()
    gtest_discover_tests(${target} ${options} TEST_FILTER "-${on_gpu}:*Slow*" TEST_LIST ${target}_cpu
                         PROPERTIES LABELS cpu TIMEOUT 600)
    gtest_discover_tests(${target} ${options} TEST_FILTER "*Slow*" TEST_LIST ${target}_slow
                         PROPERTIES LABELS slow TIMEOUT 600)
    gtest_discover_tests(${target} ${options} TEST_FILTER "${on_gpu}" TEST_LIST ${target}_gpu
                         PROPERTIES LABELS gpu TIMEOUT 600)
  endif()
endfunction()

# Compiles every given header, named from the repository root, alone, each in a file of its own.
function(outboard_header_check target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "HEADERS;LIBRARIES")
  set(sources "")
  foreach(header IN LISTS arg_HEADERS)
    string(REGEX REPLACE "[/.]" "_" stem "${header}")
    set(source "${CMAKE_CURRENT_BINARY_DIR}/${target}/${stem}.cc")
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"${header}\"\n#include \"${header}\"\n")
    list(APPEND sources "${source}")
  endforeach()
  if(sources)
    add_library(${target} OBJECT ${sources})
    target_compile_options(${target} PRIVATE -O0 -g0)
    target_include_directories(
      ${target} PRIVATE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/include")
    target_link_libraries(${target} PRIVATE outboard_flags ${arg_LIBRARIES})
  endif()
endfunction()

# Each file must compile as it is, and must not with OUTBOARD_MUST_NOT_COMPILE defined.
function(outboard_compile_fail_test source)
  get_filename_component(stem "${source}" NAME_WE)
  set(compile "${CMAKE_CXX_COMPILER}" -std=c++20 -fsyntax-only "-I${PROJECT_SOURCE_DIR}"
              "-I${PROJECT_SOURCE_DIR}/include" "${source}")
  add_test(NAME CompileFail.${stem}_compiles COMMAND ${compile})
  add_test(NAME CompileFail.${stem}_is_rejected COMMAND ${compile} -DOUTBOARD_MUST_NOT_COMPILE)
  set_tests_properties(CompileFail.${stem}_compiles CompileFail.${stem}_is_rejected
                       PROPERTIES LABELS cpu)
  set_tests_properties(CompileFail.${stem}_is_rejected PROPERTIES WILL_FAIL TRUE)
endfunction()
