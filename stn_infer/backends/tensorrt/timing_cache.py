"""The times of TensorRT's kernels on a GPU, kept in a file between builds: what was measured is not measured again.

The bytes are TensorRT's own, so ``trtexec --timingCacheFile`` reads and extends the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stn_infer.backends.tensorrt.runtime import TensorRT
from stn_infer.errors import ModelError
from stn_infer.files import check_writable, is_own, locked_folder, write_atomically


@dataclass(frozen=True)
class TimingCache:
    """A file with a timing cache.

    Attributes:
        path: the file, which may not exist yet.
        named: whether the user named it. Such a file must be usable; one in the engine cache is replaced if it is not.
        fresh: measure everything again.
    """

    path: Path
    named: bool = False
    fresh: bool = False

    def check(self) -> None:
        """Check that the file can be written, before anything is built.

        Raises:
            OutputError: it cannot.
        """
        check_writable(self.path)

    def attach(self, config: Any, runtime: TensorRT, logger: Any) -> None:
        """Give the file's content to a builder configuration.

        Raises:
            ModelError: the named file is unreadable, not a timing cache, or one of another version or GPU.
        """
        content = b"" if self.fresh else self._read()
        errors, warnings = len(logger.errors), len(logger.warnings)
        cache = config.create_timing_cache(content)
        # Of content that it cannot use, TensorRT only logs a warning, and then it returns an empty cache.
        usable = cache is not None and config.set_timing_cache(cache, False)
        if content and (not usable or len(logger.errors) > errors or len(logger.warnings) > warnings):
            if self.named:
                raise ModelError(
                    f"{self.path} is not a timing cache of {runtime.title} {runtime.version} on this GPU; delete it "
                    "or name another file with --timing-cache"
                )
            del logger.errors[errors:], logger.warnings[warnings:]  # no reasons for what the build does
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self, config: Any) -> None:
        """Write what the builder measured, and what other builds have written in the meantime.

        Raises:
            OutputError: the file cannot be written.
        """
        cache = config.get_timing_cache()
        if cache is None:
            return
        with locked_folder(self.path.parent):
            there = self._read()
            other = config.create_timing_cache(there) if there else None
            if other is not None:
                cache.combine(other, False)  # entries that both have stay as they were measured now
            write_atomically(self.path, bytes(cache.serialize()))
        if not self.named:
            self.path.chmod(0o600)

    def _read(self) -> bytes:
        try:
            if not self.named and not is_own(self.path):
                return b""
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ModelError(f"{self.path}: expected a timing cache, found {error.strerror or error}") from None
