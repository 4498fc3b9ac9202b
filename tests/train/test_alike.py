"""What differs between processes is found before anything compiles, and named with them."""

import dataclasses
import threading

import pytest

from experiments import demo
from vdm_jax.config import UserError
from vdm_jax.train import alike


@dataclasses.dataclass
class Table:
    """Hosts of one process, at a table of several: each lays down what it says."""

    index: int
    count: int
    shared: dict
    barrier: threading.Barrier

    def agree(self, name, work):
        self.shared[name, self.index] = work()
        self.barrier.wait(10)
        said = [self.shared[name, n] for n in range(self.count)]
        self.barrier.wait(10)
        return said


def at_table(count, work):
    """(what each process raises or returns)."""
    shared, barrier, found = {}, threading.Barrier(count), [None] * count

    def run(n):
        try:
            found[n] = work(Table(n, count, shared, barrier))
        except UserError as error:
            found[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found, shared


BASE = {"manifests": ["ab"], "rows": None}


def mine(config, fingerprint=BASE, **versions):
    return alike.particulars(config, fingerprint, {"jax": "1"} | versions)


def config(**knobs):
    found = demo.get_config("smoke")
    found.knobs.update(knobs)
    return found


def test_the_same_agree_by_one_digest():
    found, shared = at_table(3, lambda hosts: alike.check(hosts, mine(config())))
    assert found == [None] * 3 and {name for name, _ in shared} == {"alike"}


@pytest.mark.parametrize(
    "other, words",
    [
        (lambda: mine(config(seed=7)), "config.seed is 0 on process 0, 2 and 7 on process 1"),
        (lambda: mine(config(), {"manifests": ["cd"]}), 'data.manifests is ["ab"] on process 0, 2'),
        (lambda: mine(config(), jax="2"), "the version of jax is 1 on process 0, 2 and 2 on"),
        (lambda: mine(config()) | {"the code": "x"}, "the code is "),
        (lambda: mine(config()) | {"the devices": "3 x cpu"}, "and 3 x cpu on process 1"),
    ],
)
def test_what_differs_is_named_on_every_process(other, words):
    def work(hosts):
        alike.check(hosts, other() if hosts.index == 1 else mine(config()))

    found, _ = at_table(3, work)
    for error in found:
        assert isinstance(error, UserError) and error.code == 2 and words in str(error)


def test_a_changed_line_of_code_is_another_code(tmp_path, monkeypatch):
    from vdm_jax import compiled

    package = tmp_path / "vdm_jax"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(compiled.vdm_jax, "__file__", str(package / "__init__.py"))
    before = compiled.code_digest.__wrapped__()
    (package / "a.py").write_text("x = 2\n")
    assert compiled.code_digest.__wrapped__() != before


def test_a_folder_that_is_not_shared_is_said(tmp_path):
    def shared(hosts):
        alike.check_shared(hosts, tmp_path / "run", patience_s=0.3)

    assert at_table(2, shared)[0] == [None, None] and not list((tmp_path / "run").iterdir())

    def apart(hosts):
        alike.check_shared(hosts, tmp_path / f"run{hosts.index}", patience_s=0.3)

    found, _ = at_table(2, apart)
    for error in found:
        assert isinstance(error, UserError) and "process 1 cannot see" in str(error)
