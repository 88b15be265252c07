# The installed tree: liboutboard.so, the public headers, and what find_package(outboard) reads.
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/outboard")
install(TARGETS outboard EXPORT outboardTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/outboard" DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT outboardTargets NAMESPACE outboard:: DESTINATION ${package_dir})

configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/outboardConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/outboardConfig.cmake" INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/outboardConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/outboardConfig.cmake"
              "${PROJECT_BINARY_DIR}/outboardConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/outboard_python.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/outboard_torch.cmake"
        DESTINATION ${package_dir})
