"""How a checkpoint wants to be sampled, read from its scheduler's JSON."""

from dataclasses import dataclass

from sana_runtime.solver import FlowDpm, FlowEuler, Scm

from sana_reference.checkpoint.fields import Fields
from sana_reference.config import SanaConfig

__all__ = ["SolverDefaults", "defaults_of_preset", "solver_defaults"]

GUIDANCE = 4.5
# Fields of a noise schedule, or of a mode that is switched off: flow matching uses none of them.
UNUSED_BY_DPM = [
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "lambda_min_clipped",
    "variance_type",
    "steps_offset",
    "lower_order_final",
    "timestep_spacing",
    "time_shift_type",
]
UNUSED_BY_EULER = ["base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"]
NEVER = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting")


@dataclass(frozen=True)
class SolverDefaults:
    """The solver of a checkpoint and the settings it is used with when the caller names none."""

    name: str  # as in sana_runtime.solver.SOLVERS
    steps: int
    shift: float | None = None  # None for a solver that has none
    guidance: float = GUIDANCE


def defaults_of_preset(config: SanaConfig) -> SolverDefaults:
    """The settings of a model that comes without a scheduler."""
    if config.guidance_embedding:
        return SolverDefaults(Scm.name, Scm.usual_steps)
    return SolverDefaults(FlowDpm.name, FlowDpm.usual_steps, config.flow_shift)


def solver_defaults(fields: Fields) -> SolverDefaults:
    """The settings in a scheduler_config.json, of one of the three schedulers that Sana is used with."""
    kind = fields.any("_class_name")
    fields.only("num_train_timesteps", 1000, default=1000)
    if kind == "DPMSolverMultistepScheduler":
        return _flow_dpm(fields)
    if kind == "FlowMatchEulerDiscreteScheduler":
        return _flow_euler(fields)
    if kind == "SCMScheduler":
        return _scm(fields)
    raise fields.refuse("_class_name", "DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler and SCMScheduler")


def _flow_dpm(fields: Fields) -> SolverDefaults:
    fields.only("algorithm_type", "dpmsolver++", default="dpmsolver++")
    fields.only("solver_order", 2, default=2)
    fields.only("solver_type", "midpoint", default="midpoint")
    fields.only("prediction_type", "flow_prediction", default="epsilon")
    fields.only("use_flow_sigmas", True, default=False)
    fields.only("final_sigmas_type", "zero", default="zero")
    for name in (*NEVER, "thresholding", "euler_at_final", "use_lu_lambdas", "rescale_betas_zero_snr"):
        fields.only(name, False, None, default=False)
    shift = fields.number("flow_shift", 1.0)
    guidance = fields.number("_guidance_scale", GUIDANCE)  # nano's own field, which diffusers passes over
    fields.finish(UNUSED_BY_DPM)
    return SolverDefaults(FlowDpm.name, FlowDpm.usual_steps, shift, guidance)


def _flow_euler(fields: Fields) -> SolverDefaults:
    for name in (*NEVER, "invert_sigmas", "stochastic_sampling"):
        fields.only(name, False, None, default=False)
    fields.only("shift_terminal", None, default=None)
    shift = fields.number("shift", 1.0)
    fields.finish(UNUSED_BY_EULER)
    return SolverDefaults(FlowEuler.name, FlowEuler.usual_steps, shift)


def _scm(fields: Fields) -> SolverDefaults:
    fields.only("prediction_type", "trigflow", default="trigflow")
    fields.only("sigma_data", 0.5, default=0.5)
    fields.finish()
    return SolverDefaults(Scm.name, Scm.usual_steps)
