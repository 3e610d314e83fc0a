"""Which backend runs: the choice, its explanation, and its errors.

Nothing falls back in silence.
"""

import asyncio
import contextvars
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import mam_kernels as mam
from mam_kernels._core import dispatch
from mam_kernels.ops.value_attention import reference as value_reference

NAMES = ("triton", "cuda", "cpu", "reference")
ROOT = Path(mam.__file__).parents[1]
has_cpu = bool(mam.backends()["cpu"])


@pytest.fixture(autouse=True)
def _fresh_choices():
    """Every test starts and ends without cached choices."""
    dispatch.forget()
    yield
    dispatch.forget()


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter, without this process's own choice of backend."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAM_BACKEND", "TRITON_INTERPRET")
    }
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**inherited, "PYTHONPATH": paths, **environment},
    )


def weights() -> torch.Tensor:
    return torch.ones(2, 10)


def draw(**options) -> torch.Tensor:
    return mam.sample_without_replacement(weights(), 3, seed=1, **options)


def chosen(**options) -> str | None:
    return mam.explain(mam.sample_without_replacement, weights(), 3, **options).chosen


def break_backend(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    """As on a machine where ``name`` is missing."""
    real = dispatch._missing.__wrapped__
    monkeypatch.setattr(
        dispatch, "_missing", lambda backend: reason if backend == name else real(backend)
    )
    for cached in (dispatch.obstacle, dispatch.resolve):
        cached.cache_clear()


# backends()


def test_backends_lists_every_backend_by_name():
    assert tuple(mam.backends()) == NAMES


def test_backends_says_for_each_that_it_is_available_or_why_not():
    for state in mam.backends().values():
        assert isinstance(state, (mam.Available, mam.Unavailable))
        assert bool(state) is isinstance(state, mam.Available)
        assert len(state.detail if state else state.reason) > 5


def test_reference_is_always_available():
    assert torch.__version__ in mam.backends()["reference"].detail


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_gpu_backends_say_so():
    assert "GPU" in run_python("import mam_kernels as mam; print(mam.backends()['triton'])").stdout
    assert (
        "Unavailable"
        in run_python("import mam_kernels as mam; print(mam.backends()['cuda'])").stdout
    )


@pytest.mark.skipif(not has_cpu, reason="the backend cpu does not run here")
def test_what_was_built_can_be_asked():
    detail = mam.backends()["cpu"].detail
    assert "compiler" in detail
    assert "version" in detail


def test_a_file_that_is_no_extension_module_is_named_as_the_reason(tmp_path):
    result = run_python(
        "import mam_kernels as mam; print(mam.backends()['cpu'])",
        MAM_CPU_EXTENSION=str(tmp_path / "missing.so"),
    )
    assert result.returncode == 0, result.stderr
    assert "Unavailable" in result.stdout
    assert "missing.so" in result.stdout


# What is chosen


def test_tensors_on_the_cpu_choose_cpp_and_else_the_reference(monkeypatch):
    assert chosen() == ("cpu" if has_cpu else "reference")
    break_backend(monkeypatch, "cpu", "it was not built")
    assert chosen() == "reference"


def test_float64_chooses_the_reference():
    assert mam.explain(mam.sample_without_replacement, weights().double(), 3).chosen == "reference"


def test_a_device_of_no_kernel_chooses_the_reference():
    assert (
        mam.explain(mam.sample_without_replacement, torch.ones(2, 3, device="meta"), 1).chosen
        == "reference"
    )


def test_the_backend_that_explain_names_is_the_one_that_runs(monkeypatch):
    ran, real = [], dispatch._implementation.__wrapped__

    def recording(op: str, backend: str) -> Callable:
        ran.append((op, backend))
        return real(op, backend)

    recording.cache_clear = lambda: None
    monkeypatch.setattr(dispatch, "_implementation", recording)
    for backend in (None, "reference"):
        expected = mam.explain(mam.sample_without_replacement, weights(), 3, backend=backend).chosen
        ran.clear()
        draw(backend=backend)
        assert ran == [("sample_without_replacement", expected)]


# explain


FUNCTIONS = {
    "value_attention": (mam.value_attention, (torch.ones(2, 3), torch.ones(1, 1))),
    "latent_attention": (
        mam.latent_attention,
        (torch.ones(1, 1, 2), torch.ones(2, 3, 1, 2), torch.ones(2, 3, 1, 2)),
    ),
    "attention_importance": (
        mam.attention_importance,
        (torch.ones(1, 1, 2), torch.ones(2, 3, 1, 2)),
    ),
    "sample_without_replacement": (mam.sample_without_replacement, (torch.ones(2, 3), 1)),
}


@pytest.mark.parametrize("op", FUNCTIONS)
def test_explain_takes_functions_and_names_alike(op):
    function, arguments = FUNCTIONS[op]
    assert mam.explain(function, *arguments) == mam.explain(op, *arguments)
    assert mam.explain(op, *arguments).op == op


@pytest.mark.parametrize(("input_dim", "op"), [(None, "value_mask"), (4, "token_mask")])
def test_explain_takes_modules_and_honours_their_backend(input_dim, op):
    tokens = torch.ones(2, 5) if input_dim is None else torch.ones(2, 5, input_dim)
    module = mam.MultinomialAttentionMasking(input_dim, 8, 4, 2, backend="reference")
    explanation = mam.explain(module, tokens)
    assert (explanation.op, explanation.chosen) == (op, "reference")
    assert (
        mam.explain(mam.MultinomialAttentionMasking(input_dim, 8, 4, 2), tokens).reasons[
            "reference"
        ]
        != "runs: it was named"
    )


def test_explain_gives_a_reason_for_every_backend_and_marks_the_one_that_runs():
    explanation = mam.explain(mam.sample_without_replacement, weights(), 3)
    assert tuple(explanation.reasons) == NAMES
    assert explanation.reasons[explanation.chosen] == "runs: the first that can"
    lines = str(explanation).splitlines()
    assert "torch.float32" in lines[0]
    assert "cpu" in lines[0]
    assert [line.split()[1] for line in lines if line.strip().startswith("->")] == [
        explanation.chosen
    ]
    assert all(
        any(name in line and reason in line for line in lines)
        for name, reason in explanation.reasons.items()
    )


def test_explain_tells_why_each_other_backend_would_not_run():
    reasons = mam.explain(mam.sample_without_replacement, weights(), 3, backend="reference").reasons
    assert reasons["reference"] == "runs: it was named"
    if has_cpu:
        assert reasons["cpu"] == "could run, but reference was named"
        assert (
            mam.explain(mam.sample_without_replacement, weights(), 3).reasons["reference"]
            == "could run, but cpu comes first"
        )
        assert (
            "float64"
            in mam.explain(mam.sample_without_replacement, weights().double(), 3).reasons["cpu"]
        )
        assert (
            "meta"
            in mam.explain(mam.sample_without_replacement, weights().to("meta"), 3).reasons["cpu"]
        )


def test_explain_of_a_named_backend_that_cannot_run_chooses_none_and_says_why():
    explanation = mam.explain(mam.sample_without_replacement, weights().double(), 3, backend="cpu")
    assert explanation.chosen is None
    assert explanation.reasons["cpu"] == dispatch.obstacle(
        "cpu", "sample_without_replacement", "cpu", torch.float64
    )
    assert "->" not in str(explanation)


def test_explain_computes_nothing_and_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    mam.explain(mam.sample_without_replacement, weights(), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("op", ["no_such_operation", torch.softmax, print])
def test_explain_of_something_else_is_an_error_that_lists_what_there_is(op):
    with pytest.raises(ValueError, match="op: expected one of value_attention"):
        mam.explain(op, weights())


def test_explain_without_a_tensor_is_an_error():
    with pytest.raises(TypeError, match="a tensor among them"):
        mam.explain(mam.sample_without_replacement, 3)


# use_backend and MAM_BACKEND


def test_use_backend_holds_inside_nests_and_is_restored():
    outside = chosen()
    with mam.use_backend("reference"):
        assert chosen() == "reference"
        with mam.use_backend(None):
            assert chosen() == outside
        assert chosen() == "reference"
        with mam.use_backend("triton"):
            assert dispatch.requested() == "triton"
        assert chosen() == "reference"
    assert chosen() == outside
    assert dispatch.requested() == dispatch.AUTOMATIC


def test_use_backend_is_restored_after_an_exception():
    with pytest.raises(KeyError), mam.use_backend("reference"):
        raise KeyError
    assert dispatch.requested() == dispatch.AUTOMATIC


def test_use_backend_holds_in_its_thread_alone():
    inside, asked = threading.Event(), threading.Event()
    found = []

    def named() -> None:
        with mam.use_backend("reference"):
            inside.set()
            asked.wait(30)
            found.append(chosen())

    thread = threading.Thread(target=named)
    thread.start()
    assert inside.wait(30)
    elsewhere = chosen()  # while the other thread is inside
    asked.set()
    thread.join()
    assert found == ["reference"]
    assert elsewhere == ("cpu" if has_cpu else "reference")
    assert dispatch.requested() == dispatch.AUTOMATIC


def test_use_backend_holds_in_its_task_alone():
    async def named(name: str, inside: asyncio.Barrier) -> str:
        with mam.use_backend(name):
            await inside.wait()
            await asyncio.sleep(0)
            return dispatch.requested()

    async def tasks() -> list[str]:
        inside = asyncio.Barrier(4)

        async def unnamed() -> str:
            await inside.wait()
            return dispatch.requested()

        names = ("reference", "triton", "cpu")
        return await asyncio.gather(*(named(name, inside) for name in names), unnamed())

    assert asyncio.run(tasks()) == ["reference", "triton", "cpu", dispatch.AUTOMATIC]


def test_threads_that_start_inside_do_not_inherit_and_contexts_that_are_copied_do():
    with mam.use_backend("reference"):
        copied = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(dispatch.requested).result() == dispatch.AUTOMATIC
    assert copied.run(dispatch.requested) == "reference"


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_the_backend_of_a_masking_step_runs_its_backward_pass_too(kind):
    module = mam.MultinomialAttentionMasking(None if kind == "values" else 4, 8, 4, 2)
    tokens = torch.rand(2, 9) if kind == "values" else torch.rand(2, 9, 4)
    for inside in ("reference", None):
        with mam.use_backend(inside):
            out = module(tokens, seed=1)
        with mam.use_backend("cuda"):  # which runs nowhere on this tensor
            out.context.sum().backward()
    assert module.latents.grad is not None


def test_an_argument_wins_over_use_backend():
    with mam.use_backend("triton"):
        assert chosen(backend="reference") == "reference"
        assert draw(backend="reference").sum() == 6


def test_use_backend_reaches_modules_that_name_none_and_not_those_that_do():
    with mam.use_backend("reference"):
        assert (
            mam.explain(mam.MultinomialAttentionMasking(None, 8, 4, 2), torch.ones(1, 4)).chosen
            == "reference"
        )
    with mam.use_backend("triton"):
        named = mam.MultinomialAttentionMasking(None, 8, 4, 2, backend="reference")
        assert mam.explain(named, torch.ones(1, 4)).chosen == "reference"
        assert named(torch.ones(1, 4), seed=1).mask.sum() == 1


def test_the_backend_of_the_forward_pass_runs_the_backward_pass_too():
    query, tokens = torch.randn(2, 1, 4, requires_grad=True), torch.randn(1, 3, 1, 4)
    with mam.use_backend("reference"):
        output, _ = mam.latent_attention(query, tokens, tokens)
    with mam.use_backend("cuda"):  # which runs nowhere on this tensor
        output.sum().backward()
    assert query.grad is not None


@pytest.mark.parametrize("name", ["numpy", "CPU", "", 3])
def test_use_backend_of_an_unknown_name_is_an_error_and_changes_nothing(name):
    with (
        pytest.raises(ValueError, match="backend: expected one of triton, cuda, cpu, reference"),
        mam.use_backend(name),
    ):
        pass
    assert dispatch.requested() == dispatch.AUTOMATIC


def test_environment_variable_chooses_for_the_process():
    script = (
        "import torch, mam_kernels as mam; "
        "print(mam.explain(mam.sample_without_replacement, torch.ones(1, 2), 1).chosen)"
    )
    assert run_python(script, MAM_BACKEND="reference").stdout.strip() == "reference"
    assert run_python(script, MAM_BACKEND="").stdout.strip() == ("cpu" if has_cpu else "reference")


def test_environment_variable_yields_to_use_backend_and_to_an_argument(monkeypatch):
    monkeypatch.setenv("MAM_BACKEND", "triton")
    dispatch.forget()
    assert dispatch.requested() == "triton"
    with mam.use_backend("reference"):
        assert dispatch.requested() == "reference"
    with mam.use_backend(None):
        assert dispatch.requested() == dispatch.AUTOMATIC
    assert dispatch.requested("cpu") == "cpu"


def test_environment_variable_with_an_unknown_name_is_an_error_of_the_first_call_not_the_import():
    script = (
        "import torch, mam_kernels as mam; print('imported'); "
        "mam.sample_without_replacement(torch.ones(1, 2), 1)"
    )
    result = run_python(script, MAM_BACKEND="fastest")
    assert result.returncode != 0
    assert result.stdout.strip() == "imported"
    assert (
        "ValueError: MAM_BACKEND: expected one of triton, cuda, cpu, reference, or None to choose; "
        "got 'fastest'" in result.stderr
    )


# A named backend that cannot run


def test_a_named_backend_that_cannot_take_float64_raises_and_says_so():
    with pytest.raises(
        mam.BackendUnavailableError, match="'cpu' cannot run sample_without_replacement"
    ):
        mam.sample_without_replacement(weights().double(), 3, backend="cpu")


@pytest.mark.parametrize("name", ["triton", "cuda", "cpu"])
def test_a_named_backend_that_is_missing_raises_its_reason_for_every_operation(name, monkeypatch):
    break_backend(monkeypatch, name, "it is on holiday")
    calls = [
        lambda: draw(backend=name),
        lambda: mam.value_attention(torch.ones(2, 3), torch.ones(1, 1), backend=name),
        lambda: mam.latent_attention(
            torch.ones(1, 1, 2), torch.ones(2, 3, 1, 2), torch.ones(2, 3, 1, 2), backend=name
        ),
        lambda: mam.attention_importance(
            torch.ones(1, 1, 2),
            torch.ones(2, 3, 1, 2),
            torch.ones(2, 1, 1),
            torch.tensor([0]),
            backend=name,
        ),
        lambda: mam.MultinomialAttentionMasking(None, 8, 4, 2, backend=name)(torch.ones(1, 4)),
        lambda: mam.MultinomialAttentionMasking(3, 8, 4, 2, backend=name)(torch.ones(1, 4, 3)),
        lambda: mam.testing.check(name),
    ]
    for call in calls:
        with pytest.raises(mam.BackendUnavailableError, match="it is on holiday"):
            call()


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_named_backend_does_not_take_tensors_of_another_device(name, monkeypatch):
    monkeypatch.setattr(dispatch, "_missing", lambda backend: None)
    monkeypatch.setattr(
        dispatch, "_device_of", lambda backend: "cuda" if backend in ("triton", "cuda") else "cpu"
    )
    dispatch.obstacle.cache_clear()
    dispatch.resolve.cache_clear()
    with pytest.raises(
        mam.BackendUnavailableError, match="it takes tensors on cuda; these are on cpu"
    ):
        draw(backend=name)


def test_a_named_backend_that_cannot_run_is_never_replaced(monkeypatch):
    monkeypatch.setattr(
        value_reference, "moments", lambda *arguments: pytest.fail("the reference ran in its place")
    )
    break_backend(monkeypatch, "cpu", "it was not built")
    with mam.use_backend("cpu"), pytest.raises(mam.BackendUnavailableError):
        mam.value_attention(torch.ones(2, 3), torch.ones(1, 1))


def test_an_empty_batch_does_not_hide_that_the_named_backend_cannot_run(monkeypatch):
    break_backend(monkeypatch, "cuda", "it is on holiday")
    with pytest.raises(mam.BackendUnavailableError):
        mam.sample_without_replacement(torch.ones(0, 4), 1, backend="cuda")


def test_backend_unavailable_is_a_value_error_and_a_runtime_error():
    assert issubclass(mam.BackendUnavailableError, ValueError)
    assert issubclass(mam.BackendUnavailableError, RuntimeError)


@pytest.mark.parametrize("name", ["numpy", "", 3, True])
def test_an_unknown_name_is_an_error_of_every_function_and_of_the_module(name):
    pattern = "backend: expected one of triton, cuda, cpu, reference, or None to choose; got"
    for call in (
        lambda: draw(backend=name),
        lambda: mam.value_attention(torch.ones(2, 3), torch.ones(1, 1), backend=name),
        lambda: mam.latent_attention(
            torch.ones(1, 1, 2), torch.ones(2, 3, 1, 2), torch.ones(2, 3, 1, 2), backend=name
        ),
        lambda: mam.MultinomialAttentionMasking(backend=name),
        lambda: mam.explain(mam.sample_without_replacement, weights(), 3, backend=name),
        lambda: mam.testing.check(name),
    ):
        with pytest.raises(ValueError, match=pattern):
            call()


# The log


def test_the_choice_is_logged_once_for_each_operation_device_and_type(caplog):
    with caplog.at_level(logging.INFO, logger="mam_kernels"):
        for _ in range(3):
            draw()
        mam.sample_without_replacement(weights().half(), 3, seed=1)
        mam.value_attention(torch.ones(2, 3), torch.ones(1, 1))
    name = "cpu" if has_cpu else "reference"
    assert [record.getMessage() for record in caplog.records] == [
        f"sample_without_replacement on cpu, torch.float32: backend {name}",
        f"sample_without_replacement on cpu, torch.float16: backend {name}",
        f"value_attention on cpu, torch.float32: backend {name}",
    ]


def test_a_named_backend_is_not_announced(caplog):
    with caplog.at_level(logging.INFO, logger="mam_kernels"):
        draw(backend="reference")
    assert caplog.records == []


def test_every_operation_has_its_function_in_every_backend_that_runs_here():
    for name, state in mam.backends().items():
        for op in dispatch.IMPLEMENTATIONS:
            if state:
                assert callable(dispatch._implementation(op, name))
