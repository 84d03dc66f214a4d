"""Where compiled code runs and is timed: this machine's CPU, its GPU, or a device behind TVM's RPC."""

from __future__ import annotations

from dataclasses import dataclass

from hawq_tvm.core.errors import SettingsError

FORMS = "cpu, cuda:0, rpc:HOST:PORT/KEY of a tracker, or rpc:HOST:PORT of a server"


@dataclass(frozen=True)
class Device:
    """An address.

    Attributes:
        host: of TVM's RPC tracker or server; empty for this machine itself.
        port: of the same.
        key: what servers offer themselves under at a tracker; empty for a server that is asked without one.
        cuda: of this machine, whether it is the GPU. Behind RPC the target decides: a machine there may have both.
    """

    host: str = ""
    port: int = 0
    key: str = ""
    cuda: bool = False

    @classmethod
    def parse(cls, text: str) -> Device:
        """Read what `str` writes.

        >>> Device.parse("rpc:tracker.local:9190/t4")
        Device(host='tracker.local', port=9190, key='t4', cuda=False)
        >>> str(Device.parse("rpc:[::1]:9090"))
        'rpc:[::1]:9090'

        Raises:
            SettingsError: anything else.
        """
        if text in ("cpu", "cuda:0"):
            return cls(cuda=text == "cuda:0")
        if text.startswith("cuda"):
            raise SettingsError(f"this machine's GPU is cuda:0, got '{text}'; CUDA_VISIBLE_DEVICES says which that is")
        kind, _, rest = text.partition(":")
        address, slash, key = rest.partition("/")
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        known = kind == "rpc" and host and port.isdecimal() and 0 < int(port) < 2**16
        if not known or bool(slash) != bool(key) or any(map(str.isspace, text)):
            raise SettingsError(f"a device is {FORMS}; got '{text}'")
        return cls(host, int(port), key)

    @property
    def is_remote(self) -> bool:
        """Whether it is reached by RPC."""
        return bool(self.host)

    @property
    def is_this_cpu(self) -> bool:
        """Whether it is this machine's CPU, which is timed without further ado."""
        return not self.is_remote and not self.cuda

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        if not self.is_remote:
            return "cuda:0" if self.cuda else "cpu"
        return f"rpc:{self.address}" + (f"/{self.key}" if self.key else "")
