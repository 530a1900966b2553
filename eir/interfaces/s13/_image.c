/* Images of lists as the lane reads them: three arrays of each, which eir/lists/images/image.py describes. Whatever they say, nothing outside of
 * them is read. Keys are looked up in steps, each step for many of them, so that memory comes for some while others are looked at. */

#include "_lane.h"

enum { WHOLE = 1 << 16, WHOLE_TIMED = 1 << 17, TIMED = 1 << 18, LINE_KEYS = 32, SLOT_WORDS = 4 };

/* Take the arrays of a list over. 0 with an exception if they cannot be those of an image. */
int open_list(List *list, PyObject *arrays) {
	if (!PyArg_ParseTuple(arrays, "y*y*y*", list->views, list->views + 1, list->views + 2))
		return 0;
	uint64_t slots = (uint64_t)list->views[0].len / (4 * SLOT_WORDS), offsets = (uint64_t)list->views[1].len / 4, lows = (uint64_t)list->views[2].len / 2;
	list->slots = list->views[0].buf, list->offsets = list->views[1].buf, list->lows = list->views[2].buf;
	list->slot_mask = (uint32_t)slots - 1, list->offset_count = (uint32_t)offsets, list->low_count = (uint32_t)lows;
	for (list->shift = 32; slots >> (32 - list->shift) > 1;)
		list->shift--;
	list->is_there = slots >= 2 && slots <= 1ull << 31 && !(slots & (slots - 1)) && offsets && offsets <= UINT32_MAX && lows <= UINT32_MAX;
	return list->is_there || (PyErr_SetString(PyExc_ValueError, "not the arrays of an image"), 0);
}

/* Take over the days of a record of first sightings, whose other arrays are open. 0 with an exception if they are not as many as its keys. */
int open_days(List *list, PyObject *days) {
	if (PyObject_GetBuffer(days, list->views + 3, PyBUF_SIMPLE))
		return 0;
	list->days = list->views[3].buf;
	int fits = (uint64_t)list->views[3].len == (uint64_t)DAYS_BYTES * list->low_count;
	return fits || (PyErr_SetString(PyExc_ValueError, "not the days of an image"), 0);
}

void search_blocks(const List *in, Search *all, int count) {
	for (Search *one = all; one < all + count; one++) {
		const uint32_t *slot, page = one->page, upper = one->remainder >> 16;
		uint32_t at = slot_of(in, page), steps = 0;
		do
			slot = in->slots + SLOT_WORDS * (uint64_t)(at++ & in->slot_mask);
		while (slot[3] && slot[0] != page && steps++ < in->slot_mask);
		one->found = NO, one->start = one->end = 0;
		if (!slot[3] || slot[0] != page)
			continue;
		one->bits = slot[2], one->block = slot[1] + (uint32_t)__builtin_popcount(slot[2] & ((1u << upper) - 1));
		int is_listed = one->bits >> upper & 1 && one->block + 1ull < in->offset_count;
		one->found = one->bits & WHOLE ? YES : is_listed || one->bits & WHOLE_TIMED ? MAYBE : NO;
		one->block = is_listed ? one->block : UINT32_MAX;
		if (is_listed)
			__builtin_prefetch(in->offsets + one->block);
	}
}

void search_lows(const List *in, Search *all, int count) {
	for (Search *one = all; one < all + count; one++) {
		if (one->found != MAYBE || one->block == UINT32_MAX)
			continue;
		uint32_t start = in->offsets[one->block], end = in->offsets[one->block + 1];
		if (start > end || end > in->low_count)
			start = end = 0;
		one->start = start, one->end = end;
		/* Most blocks of a large list lie in one or two lines of the cache; of a longer one the middle is read first. */
		__builtin_prefetch(in->lows + start);
		__builtin_prefetch(in->lows + end - (end > start));
		if (end - start > LINE_KEYS)
			__builtin_prefetch(in->lows + start + (end - start) / 2);
	}
}

/* The place of a key among all keys; UINT64_MAX if it is not there. */
static uint64_t place_of(const List *in, const Search *one) {
	const uint16_t low = one->remainder & 0xFFFF;
	uint64_t from = one->start, count = one->end - one->start;
	while (count > 1) {	/* without a branch that could be guessed wrong while memory is waited for */
		uint64_t half = count / 2;
		from = in->lows[from + half] <= low ? from + half : from;
		count -= half;
	}
	return count && in->lows[from] == low ? from : UINT64_MAX;
}

void search_places(const List *in, Search *all, int count) {
	for (Search *one = all; one < all + count; one++) {
		one->place = one->found == MAYBE ? place_of(in, one) : UINT64_MAX;
		if (in->days && one->place != UINT64_MAX)
			__builtin_prefetch(in->days + DAYS_BYTES * one->place);
	}
}

/* The last step: NO, YES, or MAYBE. For MAYBE, Python checks whether a row that begins or ends is in force. */
int search_key(const Search *one) {
	if (one->found != MAYBE)
		return one->found;
	int is_there = one->place != UINT64_MAX;
	return one->bits & WHOLE_TIMED || (is_there && one->bits & TIMED) ? MAYBE : is_there;
}

/* The first day that a record has for a device; UNSURE if it has none, or if this sighting belongs on the record (eir.lists.images.index). */
uint64_t search_day(const List *in, const Search *one, uint64_t key) {
	uint64_t at = one->place, age = in->today - PERIODS_BEGIN + key % PERIOD_DAYS, period = age / PERIOD_DAYS;
	if (at == UINT64_MAX || in->today < PERIODS_BEGIN)
		return UNSURE;
	const uint8_t *days = in->days + DAYS_BYTES * at;
	uint32_t first = days[0] | (uint32_t)days[1] << 8;
	return first > in->today || days[2] < (period < PERIOD_MAX ? period : PERIOD_MAX) ? UNSURE : first;
}
