# shellcheck shell=bash
# Shared by gpu_test, gpu_bench and bench; sourced with the repository root as the working directory.
# A package is the folder .gpu: test and benchmark programs with the libraries that another machine
# may lack, small enough to copy, so that a machine with a GPU needs no build.

kPackage=.gpu
kMostPackageMib=60

# Libraries that every machine with torch has: the C and C++ run time, torch's and CUDA's own.
kPresentLibraries='^(linux-vdso|ld-linux|libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+)'
kPresentLibraries+='|^lib(torch|c10|cuda|cudart|cublas|cudnn|nccl|nv)'

# pack_binaries BUILD_DIR PATTERN...: copies programs that match, stripped, and what they load.
pack_binaries() {
  local build_dir=$1 pattern file found=()
  shift
  mkdir -p "$kPackage"
  for pattern in "$@"; do
    while IFS= read -r file; do found+=("$file"); done < <(
      find "$build_dir" -maxdepth 2 -type f -executable -name "$pattern" | sort)
  done
  if [[ ${#found[@]} -eq 0 ]]; then
    echo "nothing in $build_dir matches $*; build it first" >&2
    return 1
  fi
  file=$(find "$build_dir" -maxdepth 2 -name liboutboard.so | head -n 1)
  if [[ -n $file ]]; then found+=("$file"); fi
  for file in "${found[@]}"; do
    strip -o "$kPackage/${file##*/}" "$file"
    pack_libraries "$file"
  done
  check_package_size
}

# Copies the libraries that FILE loads and another machine may lack.
pack_libraries() {
  local name path
  while read -r name path; do
    [[ $name =~ $kPresentLibraries || $name == liboutboard.so || ! -f $path ]] && continue
    cp -L "$path" "$kPackage/$name"
  done < <(ldd "$1" | awk '$2 == "=>" {print $1, $3}')
}

check_package_size() {
  local mib
  mib=$(du -sm "$kPackage" | cut -f1)
  du -ak "$kPackage" | sort -rn | awk '{printf "%8d KiB  %s\n", $1, $2}'
  echo "$kPackage holds $mib MiB"
  if (( mib > kMostPackageMib )); then
    echo "$kPackage is larger than $kMostPackageMib MiB; build for one GPU architecture only" >&2
    return 1
  fi
}

# Makes the package's programs and the Python package find their libraries.
use_package() {
  local torch_libraries
  torch_libraries=$(python3 -c '
import importlib.util, pathlib
spec = importlib.util.find_spec("torch")
print(pathlib.Path(spec.origin).parent / "lib" if spec else "")')
  export LD_LIBRARY_PATH="$PWD/$kPackage:$torch_libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
  export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"
  if [[ -f $kPackage/liboutboard.so && ! -e python/outboard/liboutboard.so ]]; then
    rm -f python/outboard/liboutboard.so  # a link to a build that is not here
    cp "$kPackage/liboutboard.so" python/outboard/
  fi
}

# run_case DIR CASE [ARGUMENT...]: runs a benchmark's program in DIR, its script and torch's
# counterpart, whichever there are; JSON lines on standard output.
run_case() {
  local directory=$1 name=$2 ran=false
  shift 2
  if [[ $name == startup ]]; then
    name=offload
    set -- --startup --cases fp32-clip "$@"
  fi
  if [[ -x $directory/bench_$name ]]; then
    "$directory/bench_$name" "$@"
    ran=true
  fi
  local script
  for script in "benchmarks/$name.py" "benchmarks/torch_$name.py"; do
    if [[ -f $script ]]; then
      python3 "$script" "$@"
      ran=true
    fi
  done
  if [[ $ran == false ]]; then
    echo "no benchmark '$name' in $directory or benchmarks/" >&2
    return 2
  fi
}
