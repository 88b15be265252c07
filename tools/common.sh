# Shared by the scripts in tools/; sourced with the repository root as the working directory.
set -euo pipefail

# Python and CMake come from the checkout's own environment.
export PATH="$PWD/.venv/bin:$PATH"

# Lets the compiler cache serve a build in one folder from a build in another: paths are relative to
# the build, so both must lie equally deep.
export CCACHE_NOHASHDIR=1 CCACHE_BASEDIR="$PWD"

# Prints which step a script is at: step 2/5 "Python packages".
step() { printf '\n[%s] %s\n' "$1" "$2"; }

# One compiler for each core, and no more than one for every 2 GiB of memory: a file that includes
# libtorch needs more than 1 GiB.
jobs_that_fit() {
  local cores memory_gib
  cores=$(nproc)
  memory_gib=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  local by_memory=$(( memory_gib / 2 > 0 ? memory_gib / 2 : 1 ))
  echo $(( cores < by_memory ? cores : by_memory ))
}

# Configures a preset and builds the named targets, or everything: build dev outboard.
build() {
  local preset=$1
  shift
  cmake --preset "$preset" >"build/$preset.configure.log" 2>&1 ||
    { cat "build/$preset.configure.log"; return 1; }
  tail -n 4 "build/$preset.configure.log" | grep -F 'outboard' || true
  cmake --build --preset "$preset" -j "$(jobs_that_fit)" ${1:+--target "$@"}
}
mkdir -p build
