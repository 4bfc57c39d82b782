"""`tfc doctor`: what this machine can build and run."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from tfc.cli.console import facts, human_bytes, out, table
from tfc.errors import EXIT_ENVIRONMENT

if TYPE_CHECKING:
    from tfc.doctor import BackendFact, Diagnosis, Package
    from tfc.matrix_check import Check


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Show what this machine can build and run, and what to install for the rest.

    Exit code 4 if no backend can run engines here.
    """
    from tfc.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(diagnosis), indent=2, ensure_ascii=False))
    else:
        _print_machine(diagnosis)
        _print_backends(diagnosis.backends)
        _print_matrix(diagnosis.matrix)
        _print_packages(diagnosis.packages)
        _print_advice(diagnosis)
    ctx.exit(0 if diagnosis.can_run else EXIT_ENVIRONMENT)


def _print_machine(diagnosis: Diagnosis) -> None:
    cpu, memory = diagnosis.cpu, diagnosis.memory
    gpus = [f"{g.name}, compute {g.compute_capability}, CUDA {g.cuda}" for g in diagnosis.gpus]
    rows = {
        "tfc": diagnosis.tfc,
        "Python": f"{diagnosis.python.version}, {diagnosis.python.executable}",
        "platform": diagnosis.platform,
        "CPU": f"{cpu.model}, {_count(cpu.cores, 'core')}, {_count(cpu.threads, 'thread')}",
        "": ", ".join(cpu.features),
        "memory": f"{human_bytes(memory.total)}, {human_bytes(memory.available)} available",
        "GPU": "\n".join(gpus) or f"none: {diagnosis.why_no_gpu}",
    }
    out.print(facts("Machine", {name: value for name, value in rows.items() if value}))


def _print_backends(backends: tuple[BackendFact, ...]) -> None:
    grid = table("Backends", ["name", "version", "build here", "run here", "hardware"])
    for backend in backends:
        grid.add_row(
            backend.name,
            backend.version or "–",
            _yes(backend.can_build),
            _yes(backend.can_run),
            backend.hardware or "–",
        )
    out.print()
    out.print(grid)
    reasons = {b.name: _reasons(b) for b in backends if not (b.can_build and b.can_run)}
    if reasons:
        out.print()
        out.print(facts("Why not", reasons))


def _print_matrix(checks: tuple[Check, ...]) -> None:
    if not checks:
        return
    grid = table("Before a build", ["backend", "needs", "here", ""])
    for check in checks:
        grid.add_row(check.backend, check.needed, check.found, check.state)
    out.print()
    out.print(grid)
    if fixes := {c.what: c.fix for c in checks if c.fix}:
        out.print()
        out.print(facts("To build", fixes))


def _reasons(backend: BackendFact) -> str:
    """Why a backend cannot build and cannot run here; once if the reason is the same."""
    if backend.why_not_build == backend.why_not_run:
        return backend.why_not_run
    parts = [("build", backend.why_not_build), ("run", backend.why_not_run)]
    return "\n".join(f"{what}: {why}" for what, why in parts if why)


def _print_packages(packages: tuple[Package, ...]) -> None:
    grid = table("Packages", ["for", "installed", "missing or too old"])
    for extra in dict.fromkeys(package.extra for package in packages):
        group = [package for package in packages if package.extra == extra]
        grid.add_row(
            f"tfc[{extra}]" if extra else "tfc",
            ", ".join(f"{p.name} {p.installed}" for p in group if p.fits) or "–",
            ", ".join(_wanted(p) for p in group if not p.fits) or "–",
        )
    out.print()
    out.print(grid)


def _wanted(package: Package) -> str:
    bound = f">={package.minimum}" if package.minimum else ""
    found = f" (has {package.installed})" if package.installed else ""
    return f"{package.name}{bound}{found}"


def _print_advice(diagnosis: Diagnosis) -> None:
    if diagnosis.advice:
        out.print()
        out.print(facts("To install", {a.command: a.purpose for a in diagnosis.advice}))
    running = [backend.name for backend in diagnosis.backends if backend.can_run]
    building = [backend.name for backend in diagnosis.backends if backend.can_build]
    out.print()
    out.print(f"Engines can be built for {', '.join(building) or 'no backend'} here.")
    out.print(f"Engines can be run with {', '.join(running) or 'no backend'} here.")


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"
