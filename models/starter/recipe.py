"""What was run: the numbers behind starter.gguf."""

from models.starter.batches import Mixture
from models.starter.train import Phase, Recipe

RECIPE = Recipe(
    seed=1,
    tokens_a_step=2560,
    matrix_rate=0.004,
    other_rate=0.003,
    phases=(
        Phase(40, Mixture(tokens=256, questions=14, invented=0.35, joined=0.0), 1.0, 1.0),
        Phase(60, Mixture(tokens=400, questions=14, invented=0.35, joined=0.0), 1.0, 1.0),
        Phase(1100, Mixture(tokens=512, questions=14, invented=0.35, joined=0.06), 1.0, 1.0),
        Phase(700, Mixture(tokens=512, questions=14, invented=0.3, joined=0.7), 1.0, 0.02),
    ),
)
