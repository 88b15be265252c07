# The Python interpreter whose torch is used: the one named by Python_EXECUTABLE, else the virtual
# environment in the checkout, else the one of the active environment.

if(NOT Python_EXECUTABLE AND EXISTS "${PROJECT_SOURCE_DIR}/.venv/bin/python")
  set(Python_EXECUTABLE "${PROJECT_SOURCE_DIR}/.venv/bin/python")
endif()
set(Python_FIND_VIRTUALENV FIRST)
find_package(Python COMPONENTS Interpreter)

# Sets `out` to the folder of an installed Python package, or to "" when there is none. Looks the
# package up without importing it.
function(outboard_python_package_dir name out)
  set(dir "")
  if(Python_EXECUTABLE)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c "import importlib.util as u; s = u.find_spec('${name}')
print(list(s.submodule_search_locations)[0] if s else '', end='')"
      OUTPUT_VARIABLE dir ERROR_QUIET)
  endif()
  set(${out} "${dir}" PARENT_SCOPE)
endfunction()
