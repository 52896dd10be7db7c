"""Wrong backends of chapter P: addressed randomness."""

from __future__ import annotations

from . import edit

WORDS = "philox_words philox_uniform philox_integers philox_normal"

edit("P-1", "seven rounds", "philox", WORDS, ("ROUNDS = 10", "ROUNDS = 7"))
edit(
    "P-1",
    "bumps the key before the first round",
    "philox",
    WORDS,
    ("for _ in range(ROUNDS):", "k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW\n    for _ in range(ROUNDS):"),
)
edit("P-1", "swaps the multipliers", "philox", WORDS, ("(0xD2511F53, 0xCD9E8D57)", "(0xCD9E8D57, 0xD2511F53)"))
edit(
    "P-1",
    "high word of the seed first",
    "philox",
    WORDS,
    ("k0, k1 = seed & LOW, seed >> 32", "k0, k1 = seed >> 32, seed & LOW"),
)
edit("P-1a", "ignores the high word of the seed", "philox", WORDS, ("seed & LOW, seed >> 32", "seed & LOW, seed & 0"))
edit(
    "P-1a",
    "counters of 31 bits",
    "philox",
    WORDS,
    ("given.astype(np.uint64)", "(given & 0x7FFFFFFF).astype(np.uint64)"),
)
edit(
    "P-1a",
    "the next number, not the addressed one",
    "philox",
    WORDS,
    ("given.astype(np.uint64)", "(given + np.arange(given.size // 4).reshape(*given.shape[:-1], 1)).astype(np.uint64)"),
)
edit(
    "P-2",
    "all 32 bits",
    "philox",
    "philox_uniform",
    (
        "(block(counters, seed) >> np.uint64(8)).astype(np.float64) * 2.0**-24",
        "block(counters, seed).astype(np.float64) * 2.0**-32",
    ),
)
edit("P-2", "divides by 2^24 - 1", "philox", "philox_uniform", ("* 2.0**-24  # (P.3)", "/ (2.0**24 - 1)"))
edit(
    "P-2", "float32", "philox", "philox_uniform", ("* 2.0**-24  # (P.3)", ".astype(np.float32) * np.float32(2.0**-24)")
)
edit(
    "P-3",
    "remainder of a division",
    "philox",
    "philox_integers",
    ("((block(counters, seed) * np.uint64(bound)) >> np.uint64(32))", "(block(counters, seed) % np.uint64(bound))"),
)
edit(
    "P-3",
    "scales a uniform of 24 bits",
    "philox",
    "philox_integers",
    (
        "((block(counters, seed) * np.uint64(bound)) >> np.uint64(32))",
        "np.floor(philox_uniform(counters, seed=seed) * bound)",
    ),
)
edit(
    "P-4",
    "sine before cosine",
    "philox",
    "philox_normal",
    ("[r * np.cos(θ), r * np.sin(θ)]", "[r * np.sin(θ), r * np.cos(θ)]"),
)
edit("P-4", "forgets the factor 2", "philox", "philox_normal", ("np.sqrt(-2 * np.log", "np.sqrt(-np.log"))
edit(
    "P-4",
    "in float32",
    "philox",
    "philox_normal",
    (
        "w = block(counters, seed).astype(np.float64) * 2.0**-32",
        "w = (block(counters, seed).astype(np.float64) * 2.0**-32).astype(np.float32).astype(np.float64)",
    ),
)
