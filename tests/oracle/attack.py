"""Random mixes of flags against an oracle in numpy: `python tests/oracle/attack.py --mixes 600 --seed 0`."""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import oracle_checks
import oracle_encoder_decoder
import torch
from oracle_mixes import mix, not_mixed

import flagformer


def attacked_pair(seed):
    """The same for the encoder-decoder of a seed."""
    flags = oracle_encoder_decoder.pair_mix(seed)
    try:
        flagformer.check(flags)
        oracle_encoder_decoder.paired(flags, seed)
    except flagformer.FlagError as error:
        return None, _reason(str(error))
    except oracle_checks.Wrong as error:
        return [f"pair {flags}: {error}"], None
    except Exception as error:
        return [f"pair {flags}: {type(error).__name__}: {error}"], None
    return [], None


def attacked(flags, seed, checks=oracle_checks.CHECKS):
    """Names of the faults of one mix; None if the library refuses to build it, with its reason."""
    try:
        flagformer.check(flags)
    except flagformer.FlagError as error:
        return None, _reason(str(error))
    pair, found = oracle_checks.Pair(flags, seed), []
    for check in checks:
        try:
            check(pair)
        except oracle_checks.Wrong as error:
            found.append(f"{check.__name__}: {error}")
        except Exception as error:  # a crash is a fault of the library or of the oracle: both are reported
            found.append(f"{check.__name__}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    return found, None


def _reason(text):
    """The kind of a refusal: the text after `because`, or the rule without names and numbers."""
    line = text.splitlines()[1].removeprefix("- ")
    found = re.search(r"because (.*?)(;|$)", line)
    return found[1] if found else re.sub(r"`[^`]*`|\d+(\.\d+)?", "_", line)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixes", type=int, default=600, help="how many mixes are built")
    parser.add_argument("--seed", type=int, default=0, help="the first mix; mix i has the seed `seed` + i")
    parser.add_argument("--only", type=int, help="one mix, by its seed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    built, wrong, refused, seed = 0, 0, Counter(), asked.seed if asked.only is None else asked.only
    while built < asked.mixes:
        flags = mix(seed)
        found, reason = attacked_pair(seed) if seed % 8 == 7 else attacked(flags, seed)
        if found is None:
            refused[reason] += 1
        else:
            built, wrong = built + 1, wrong + bool(found)
        if found:
            print(f"mix {seed} {flags}\n    " + "\n    ".join(found), flush=True)
        seed += 1
        if asked.only is not None:
            break
    for reason, count in refused.most_common():
        print(f"refused {count}: {reason}")
    print(f"not covered: {', '.join(not_mixed())}")
    print(f"seeds {asked.seed} to {seed - 1}: {built} built, {sum(refused.values())} refused, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
