"""Where in a lane's list the actions stand that its spans show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hetsched.schedule.action import Action
from hetsched.sim.timeline import Span


def first_places(actions: Sequence[Action]) -> dict[Action, int]:
    """The first place of each action in a lane's list."""
    # The last first, so that the first is what stays.
    return dict(zip(reversed(actions), range(len(actions) - 1, -1, -1), strict=True))


def places_of(actions: Sequence[Action], computed: Iterable[Span]) -> list[int]:
    """The place of each span's action in the lane's list: the n-th span of an action is of its n-th place.

    Args:
        actions: the lane's list.
        computed: spans of its compute engine, by start.
    """
    next_place = first_places(actions)
    if len(next_place) == len(actions):
        return [next_place[span.action] for span in computed]
    repeated = {action for action, count in Counter(actions).items() if count > 1}
    places = []
    for span in computed:
        place = next_place[span.action]
        places.append(place)
        if span.action in repeated and span.action in actions[place + 1 :]:
            next_place[span.action] = actions.index(span.action, place + 1)
    return places
