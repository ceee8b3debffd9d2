"""When was a message written, by the date and time that an export shows?

Dates are three numbers in an order that no export names. The numbers of the whole file say which.
"""

import calendar
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from typing import Literal

DateOrder = Literal["dmy", "mdy", "ymd"]
ORDERS: tuple[DateOrder, ...] = ("dmy", "mdy", "ymd")
Numbers = tuple[int, int, int]

DAY_S = 86_400
HALF_DAY_HOURS = 12
CENTURY = 2000
FIRST_YEAR = 2009  # that of WhatsApp; an order that reads other years is wrong
LAST_YEAR = 2050
BUDDHIST_LEAD = 543  # years
BUDDHIST_YEARS = range(2543, 2643)
SHORT_BUDDHIST_YEAR = 2500  # 66 is 2566, which is 2023
PERSIAN_YEARS = range(1370, 1500)
PERSIAN_LEAD = 621  # years, from 21 March on
PERSIAN_MONTHS = (0, 31, 62, 93, 124, 155, 186, 216, 246, 276, 306, 336)  # days before each
ENOUGH_DATES = 12  # that only one order can read
SURE_STEPS = 3  # so many more steps backward show that an order is wrong
MOST_DATES = 20_000  # that are kept to be compared

# In small letters, without blanks, dots and marks
MORNING = (
    "am a vorm vm fm dop πμ öö проб дп ص قظ לפנהצ לפנה״צ पूर्वाह्न सुबह मपू sa pd de ap"
    " 上午 凌晨 早上 清晨 午前 오전 পূর্বাহ্ণ முற்பகல் ก่อนเที่ยง manhã damanhã"
    " paradite dopoledne dopol rano przedpoł"
)
AFTERNOON = (
    "pm p nachm nm em odp μμ ös слоб пп م بظ אחהצ אחה״צ अपराह्न शाम मउ ch md du ip apm"
    " 下午 中午 晚上 傍晚 午後 오후 অপরাহ্ণ பிற்பகல் หลังเที่ยง tarde datarde noite danoite pasdite"
    " odpoledne odpol popoł"
)
HALVES = {
    **dict.fromkeys(MORNING.split(), 0),
    **dict.fromkeys(AFTERNOON.split(), HALF_DAY_HOURS),
}


def half_of_day(marker: str) -> int | None:
    """Return 0 for a marker such as `a. m.`, 12 for `下午`; None: it says neither."""
    word = "".join(c for c in marker.casefold() if c.isalnum() or c == "״" or _is_mark(c))
    return HALVES.get(word)


def _is_mark(character: str) -> bool:
    """Return whether a character changes the one before it, as in Hindi."""
    return "\u0900" <= character <= "\u0e7f" and not character.isspace()


def seconds_of_day(hour: int, minute: int, second: int, half: int | None) -> int | None:
    """Return the seconds since midnight; None: no clock shows this."""
    if half is not None and hour <= HALF_DAY_HOURS:
        hour = hour % HALF_DAY_HOURS + half
    if hour > 24 or minute > 59 or second > 60:
        return None
    return hour * 3600 + minute * 60 + second


def day_seconds(numbers: Numbers, order: DateOrder) -> int | None:
    """Return the seconds from 1970 to a day; None: there is no such day."""
    year, month, day = _in_order(numbers, order)
    year = _common_year(year)
    if year in PERSIAN_YEARS:
        return _persian_day(year, month, day)
    try:
        moment = date(year, month, day)
    except ValueError:
        return None
    return calendar.timegm(moment.timetuple())


def _in_order(numbers: Numbers, order: DateOrder) -> Numbers:
    first, second, third = numbers
    if order == "ymd":
        return first, second, third
    return (third, second, first) if order == "dmy" else (third, first, second)


def _common_year(year: int) -> int:
    if year < 100:
        common = CENTURY + year
        return common if common <= LAST_YEAR else SHORT_BUDDHIST_YEAR - BUDDHIST_LEAD + year
    return year - BUDDHIST_LEAD if year in BUDDHIST_YEARS else year


def _persian_day(year: int, month: int, day: int) -> int | None:
    """Return the seconds to a day of the Persian calendar; a day may be missed in some years."""
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    spring = calendar.timegm((year + PERSIAN_LEAD, 3, 21, 0, 0, 0))
    return spring + (PERSIAN_MONTHS[month - 1] + day - 1) * DAY_S


@dataclass
class DateEvidence:
    """What the dates of a file say about their order.

    Add the dates as they come; `order` then is the likeliest.
    """

    dates: list[Numbers] = field(default_factory=list)
    readable: dict[DateOrder, int] = field(default_factory=lambda: dict.fromkeys(ORDERS, 0))
    count: int = 0

    def add(self, numbers: Numbers) -> None:
        """Take a date into account; a repeated one tells nothing new."""
        if self.dates and self.dates[-1] == numbers:
            return
        self.count += 1
        for order in ORDERS:
            self.readable[order] += _is_likely(numbers, order)
        if len(self.dates) < MOST_DATES:
            self.dates.append(numbers)

    @property
    def is_clear(self) -> bool:
        """Whether one order reads all dates, and every other one fails often."""
        best, *others = sorted(self.readable.values(), reverse=True)
        return best == self.count and others[0] <= self.count - ENOUGH_DATES

    def order(self, hint: DateOrder | None = None) -> tuple[DateOrder, list[DateOrder]]:
        """Return the likeliest order, and others that might be meant.

        hint: the order to choose where nothing else decides.
        """
        most = max(self.readable.values())
        readable = [order for order in ORDERS if self.readable[order] == most]
        if len(readable) == 1:
            return readable[0], []
        steps = {order: _backward_steps(self.dates, order) for order in readable}
        best = _best(readable, steps)
        best = _best(best, {order: _long_way(self.dates, order) for order in best})
        chosen = hint if hint in best else best[0]
        doubtful = [o for o in readable if o != chosen and steps[o] - steps[chosen] < SURE_STEPS]
        return chosen, doubtful


def _best(orders: Sequence[DateOrder], faults: dict[DateOrder, int]) -> list[DateOrder]:
    least = min(faults.values())
    return [order for order in orders if faults[order] == least]


def _is_likely(numbers: Numbers, order: DateOrder) -> bool:
    seconds = day_seconds(numbers, order)
    if seconds is None:
        return False
    year = 1970 + seconds // (365 * DAY_S)
    return FIRST_YEAR <= year <= LAST_YEAR


def _days(dates: Iterable[Numbers], order: DateOrder) -> list[int]:
    seconds = (day_seconds(numbers, order) for numbers in dates)
    return [second // DAY_S for second in seconds if second is not None]


def _backward_steps(dates: Sequence[Numbers], order: DateOrder) -> int:
    """Return how often the next date is earlier: messages come in the order of time."""
    return sum(later < earlier for earlier, later in pairwise(_days(dates, order)))


def _long_way(dates: Sequence[Numbers], order: DateOrder) -> int:
    """Return the sum of all pauses in days: read wrongly, days of one month are months apart."""
    return sum(abs(later - earlier) for earlier, later in pairwise(_days(dates, order)))
