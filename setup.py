"""Build of the native module: a CMake project that a machine without a compiler may do without.

VQKIT_NATIVE=auto (default): try; on failure install pure Python and keep the reason.  1: failure is an error.  0: do not try.
VQKIT_CUDA=auto (default): with CUDA when nvcc really compiles.  1: without a working nvcc the build is an error.  0: never.
VQKIT_CUDA_ARCHITECTURES: a CMake list such as "80;90;100" (the default) or "90".
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
REASON = "_native_reason.txt"


def choice(name: str) -> str:
    value = os.environ.get(name, "auto").strip().lower() or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


class BuildFailure(Exception):
    """The native module could not be built; the text says why."""


def run(command: list[str], **kwargs) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    except OSError as error:
        raise BuildFailure(f"{command[0]}: {error}") from error
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        # the first complaint is the cause; what follows is its consequences
        cause = next((i for i, line in enumerate(lines) if "error" in line.lower()), max(len(lines) - 8, 0))
        raise BuildFailure(f"{Path(command[0]).name} failed with exit code {done.returncode}: " + " ".join(lines[cause : cause + 8]))


class CMakeBuild(build_ext):
    def run(self):
        # build_ext of setuptools asks distutils for a compiler first; CMake finds its own
        for extension in self.extensions:
            self.build_extension(extension)

    def build_extension(self, extension):
        wanted = choice("VQKIT_NATIVE")
        package = Path(self.get_ext_fullpath(extension.name)).parent.resolve()
        package.mkdir(parents=True, exist_ok=True)
        if self.inplace or self.editable_mode:
            package = ROOT / "vqkit"
        reason = package / REASON
        reason.unlink(missing_ok=True)
        try:
            if wanted == "0":
                raise BuildFailure("VQKIT_NATIVE=0 was set when vqkit was installed")
            self.build_native(package, Path(self.build_temp).resolve() / "native")
        except BuildFailure as failure:
            # who demands CUDA demands the module that holds it
            if demanded := [name for name in ("VQKIT_NATIVE", "VQKIT_CUDA") if choice(name) == "1"]:
                raise SystemExit(f"{demanded[0]}=1, but the native module was not built: {failure}") from failure
            for stale in package.glob("_native*.so"):
                stale.unlink()
            reason.write_text(f"{failure}\n")
            print(f"vqkit: installed without the native module: {failure}", file=sys.stderr)

    def build_native(self, package: Path, folder: Path) -> None:
        try:
            import pybind11
        except ImportError as error:
            raise BuildFailure(f"pybind11 is needed to build: {error}") from error
        folder.mkdir(parents=True, exist_ok=True)
        # a cache written by another environment names tools that may be gone
        (folder / "CMakeCache.txt").unlink(missing_ok=True)
        cmake, ninja = tool("cmake"), tool("ninja")
        run([
            cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DVQKIT_EXTENSION_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}", f"-DVQKIT_CUDA={choice('VQKIT_CUDA')}",
            f"-DVQKIT_CUDA_ARCHITECTURES={os.environ.get('VQKIT_CUDA_ARCHITECTURES', '80;90;100')}",
        ])
        run([cmake, "--build", str(folder)])

    def get_outputs(self):
        return [path for extension in self.extensions for path in self.built(extension)]

    def get_output_mapping(self):
        return {}

    def built(self, extension) -> list[str]:
        target = Path(self.get_ext_fullpath(extension.name))
        return [str(path) for path in (target, target.parent / REASON) if path.exists()]


def tool(name: str) -> str:
    """The program from its wheel when that is installed (isolated builds), else from PATH."""
    try:
        module = __import__(name)
        path = Path(module.BIN_DIR if name == "ninja" else module.CMAKE_BIN_DIR) / name
        if path.exists():
            return str(path)
    except (ImportError, AttributeError):
        pass
    return name


SOURCES = ["CMakeLists.txt", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").iterdir())]
# CMake compiles them; as `depends` they travel in source distributions
setup(ext_modules=[Extension("vqkit._native", sources=[], depends=SOURCES, optional=True)], cmdclass={"build_ext": CMakeBuild})
