"""Units live in names; this module holds the shapes that measured columns take.

One canonical unit per quantity, converted once, in the adapter that read it:

=========  =======================================
suffix     unit
=========  =======================================
``_w``     watts
``_va``    volt-amperes
``_j``     joules
``_c``     degrees Celsius
``_mhz``   megahertz
``_ms``    milliseconds
``_s``     seconds
``_ratio`` a share of one, 0 to 1 unless said otherwise
``_cfm``   cubic feet of air per minute
=========  =======================================

An unknown reading is ``None`` on the wire and NaN in arrays. It is never zero.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Reading: TypeAlias = float | None
"""One measured value; ``None`` is *unknown*."""

Row: TypeAlias = tuple[Reading, ...]
"""One reading per device, in the order that the message names its devices."""

Grid: TypeAlias = tuple[Row, ...]
"""One row per sampling instant, oldest first; each row has one reading per device."""

FloatArray: TypeAlias = npt.NDArray[np.float64]
"""Readings as an array, with NaN where a reading is unknown."""
