"""Wrong backends of chapter K: choices under a budget."""

from __future__ import annotations

from . import edit, wrap

FILE = "choices"

edit(
    "K-12",
    "dominated options kept",
    FILE,
    "choice_frontier",
    ("(c > c[path[-1]]) & (l < l[path[-1]])", "c > c[path[-1]]"),
)
edit(
    "K-12",
    "every step instead of the steepest",
    FILE,
    "choice_frontier",
    ("slope == slope.max()", "slope == slope.min()"),
)
edit("K-12", "starts at the least loss", FILE, "choice_frontier", ("np.lexsort((l, c))", "np.lexsort((c, l))"))
edit(
    "K-12", "of equally cheap options the worst", FILE, "choice_frontier", ("np.lexsort((l, c))", "np.lexsort((-l, c))")
)
edit("K-12", "steps by loss alone", FILE, "choice_frontier", ("(-step[0], step[1])", "(step[1], -step[0])"))
wrap(
    "K-12",
    "the last vertex left out",
    "choice_frontier",
    lambda f: f._replace(cost=f.cost[:-1], loss=f.loss[:-1]) if len(f.cost) > 1 else f,
)
edit("K-13", "greedy alone", FILE, "allocate_choices", ("if best > (1 + tolerance) * bound:", "if False:"))
edit(
    "K-13",
    "ends at the first step that does not fit",
    FILE,
    "allocate_choices",
    ("if not stopped[j] and price <= room:", "if not stopped.any() and price <= room:"),
    ("if best > (1 + tolerance) * bound:", "if False:"),
)
edit("K-13", "a step over the budget", FILE, "allocate_choices", ("price <= room", "room > 0"))
edit(
    "K-13",
    "cheapest choices only",
    FILE,
    "allocate_choices",
    ("price <= room", "False"),
    ("if best > (1 + tolerance) * bound:", "if False:"),
)
edit(
    "K-13",
    "hulls only: other options never",
    FILE,
    "allocate_choices",
    ("np.flatnonzero(row <= slack)", "np.flatnonzero(row <= 0)"),
)
edit(
    "K-13",
    "loss told is the bound",
    FILE,
    "allocate_choices",
    ("best, min(bound, best))", "min(bound, best), min(bound, best))"),
    ("if best > (1 + tolerance) * bound:", "if False:"),
)
edit("K-13", "bound above", FILE, "allocate_choices", ("best, min(bound, best))", "best, best * 1.125 + 0.125)"))
edit("K-13a", "bound of nothing", FILE, "allocate_choices", ("best, min(bound, best))", "best, 0.0)"))
edit(
    "K-13a",
    "bound that is the greedy loss",
    FILE,
    "allocate_choices",
    ("best, min(bound, best))", "best, best)"),
    ("if best > (1 + tolerance) * bound:", "if False:"),
)
edit(
    "K-13a",
    "tolerance a hundred times as wide",
    FILE,
    "allocate_choices",
    ("(1 + tolerance)", "(1 + 100 * tolerance + 0.01)"),
)
edit(
    "K-13",
    "a branch over the budget",
    FILE,
    "allocate_choices",
    ("if spent + int(c[largest, o]) + others > budget:", "if False:"),
)
edit(
    "K-13a",
    "bound of the best branch for that of all",
    FILE,
    "allocate_choices",
    ("bound = min(bound, low)", "bound = max(bound, low)"),
)
edit(
    "K-13",
    "branches end the search",
    FILE,
    "allocate_choices",
    ("if best > (1 + tolerance) * bound_:", "if False:"),
    ("return at, best, min(bound, best)", "return at, best, best"),
)
