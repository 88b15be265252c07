# The Python interpreter whose torch is used: the one named by Python_EXECUTABLE, else the virtual
# environment in the checkout, else the one of the active environment.

if(NOT Python_EXECUTABLE AND EXISTS "${PROJECT_SOURCE_DIR}/.venv/bin/python")
  set(Python_EXECUTABLE "${PROJECT_SOURCE_DIR}/.venv/bin/python")
endif()
set(Python_FIND_VIRTUALENV FIRST)
find_package(Python COMPONENTS Interpreter)

# Sets `out` to the folder of an installed Python package, or to "" when there is none. Looks the
# package up without importing it. The second try, -I, looks past the overlay in which pip builds
# wheels, at the environment that the wheel is for.
function(outboard_python_package_dir name out)
  set(program "import importlib.util as u
try: s = u.find_spec('${name}')
except ModuleNotFoundError: s = None
print(list(s.submodule_search_locations)[0] if s else '', end='')")
  set(dir "")
  foreach(isolated IN ITEMS "" -I)
    if(Python_EXECUTABLE AND NOT dir)
      execute_process(COMMAND "${Python_EXECUTABLE}" ${isolated} -c "${program}"
                      OUTPUT_VARIABLE dir)
    endif()
  endforeach()
  set(${out} "${dir}" PARENT_SCOPE)
endfunction()
