"""Check the notebooks' exercises: confirm a right answer, or say what was expected.

A check prints `[OK] ...` or raises `NotYet`. While an answer is still `...`, the check says that
it is waiting. There is one module of checks for each notebook.
"""

from .basic_generation import animated as animated
from .basic_generation import crops as crops
from .basic_generation import lasts as lasts
from .exercises import NotYet as NotYet
from .exercises import progress as progress
from .inside_svd import aims as aims
from .inside_svd import corrects as corrects
from .inside_svd import guides as guides
from .inside_svd import same_video as same_video
from .many_videos import claims as claims
from .many_videos import shares as shares
from .many_videos import writes as writes
from .memory import chooses as chooses
from .memory import decodes as decodes
from .memory import grows as grows
from .micro_conditioning import as_far as as_far
from .micro_conditioning import explains as explains
from .micro_conditioning import loops as loops
from .micro_conditioning import mystery as mystery
from .torch_compile import counts as counts
from .torch_compile import pays_off as pays_off
from .torch_compile import races as races
from .train_your_own import hides as hides
from .train_your_own import levels as levels
from .train_your_own import moves as moves
