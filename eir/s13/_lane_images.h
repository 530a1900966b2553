/* Images of lists as the compiled lane reads them: how they are laid out is said in eir/lists/image.py. Whatever an image says, no place
 * outside of it is read: it is proved when it comes. Several keys are looked up at a time, each step for all of them, so that what is read
 * from memory for one is on its way while others are looked at. */

#pragma once

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "images of lists are little-endian, and read as they are"
#endif

enum { GROUP = 32, PAGE_KEYS = 1000000, LINE_KEYS = 32 };
enum { NO, YES, MAYBE };

static uint64_t eight_at(const uint8_t *at)
{
	uint64_t eight;
	memcpy(&eight, at, 8);
	return eight;
}

enum { NUMBERS, BITS, FIRSTS, SLOTS, OFFSETS, LOWS, END_PAGES, END_STARTS, ENDS, TAC_PAGES, TAC_ENDS, PAIR_ENDS, IMSIS, SECTIONS = 22 };
static const uint8_t item_bytes[SECTIONS] = {8, 4, 4, 4, 4, 2, 4, 4, 4, 4, 4, 4, 8, 8, 4, 4, 4, 4, 2, 4, 4, 4};
enum { VERSION = 1, TABLE_AT = 56, ALIGNED = 64 };
#define WHOLE (1u << 16)
#define WHOLE_UNTIL (1u << 17)
#define HAS_ENDS (1u << 18)

typedef struct Table {
	PyObject_HEAD
	Py_buffer view;
	struct Table *behind;	/* where pages are looked for that this one does not have */
	const void *at[SECTIONS];
	uint64_t count[SECTIONS];
	unsigned shift;
	uint32_t slot_mask;
} Table;

static const uint32_t *words(const Table *of, int section) { return of->at[section]; }

static int table_init(Table *self, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	PyObject *buffer, *behind = Py_None;
	if (self->view.obj || !PyArg_ParseTuple(arguments, "O|O", &buffer, &behind) || PyObject_GetBuffer(buffer, &self->view, PyBUF_SIMPLE))
		return -1;
	if (behind != Py_None && (Py_TYPE(behind) != Py_TYPE((PyObject *)self) || ((Table *)behind)->behind)) {
		PyErr_SetString(PyExc_TypeError, "behind a table stands none, or one alone");
		return -1;
	}
	const uint8_t *image = self->view.buf;
	uint64_t size = (uint64_t)self->view.len, said[2];
	uint32_t version[2];
	if (size >= TABLE_AT + SECTIONS * 16) {
		memcpy(version, image + 8, 8);
		memcpy(said, image + 16, 8);
	}
	if (size < TABLE_AT + SECTIONS * 16 || memcmp(image, "EIRIMAGE", 8) || version[0] != VERSION || version[1] != SECTIONS || said[0] != size) {
		PyErr_SetString(PyExc_ValueError, "no image of a list, one of another version, or one that is cut short");
		return -1;
	}
	int fits = 1;
	for (int i = 0; i < SECTIONS; i++) {
		memcpy(said, image + TABLE_AT + i * 16, 16);
		fits &= said[0] <= size && said[1] <= size - said[0] && said[0] % ALIGNED == 0 && said[1] % item_bytes[i] == 0;
		self->at[i] = image + (fits ? said[0] : 0);
		self->count[i] = fits ? said[1] / item_bytes[i] : 0;
	}
	const uint64_t *n = self->count;
	uint64_t slots = n[SLOTS] / 4;
	fits &= ((uintptr_t)image & 7) == 0 && slots >= 2 && slots <= 1ull << 31 && !(slots & (slots - 1)) && n[OFFSETS] > 0;
	fits &= n[END_STARTS] == n[END_PAGES] + 1 && n[TAC_PAGES] == n[TAC_ENDS] && n[LOWS] <= UINT32_MAX;
	if (!fits) {
		PyErr_SetString(PyExc_ValueError, "the arrays of an image do not fit one another");
		return -1;
	}
	self->slot_mask = (uint32_t)slots - 1;
	for (self->shift = 32; slots > 1; slots >>= 1)
		self->shift--;
	if (behind != Py_None)
		Py_INCREF(behind), self->behind = (Table *)behind;
	return 0;
}

static void table_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PyBuffer_Release(&((Table *)self)->view);
	Py_XDECREF((PyObject *)((Table *)self)->behind);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

/* A key on its way through images, in steps, before each of which comes what it reads. */
typedef struct {
	const Table *in;
	uint32_t page, remainder, block, first, bits, place, start, end;
	uint8_t found;
} Search;

static uint32_t slot_of(const Table *in, uint32_t page) { return page * 0x9E3779B1u >> in->shift; }

/* The slot of a page; NULL if it has none. */
static const uint32_t *page_in(const Table *in, uint32_t page)
{
	uint32_t at = slot_of(in, page);
	for (uint32_t steps = 0; steps <= in->slot_mask; steps++, at = (at + 1) & in->slot_mask) {
		const uint32_t *slot = words(in, SLOTS) + 4ull * at;
		if (!slot[3] || slot[0] == page)
			return slot[3] ? slot : NULL;
	}
	return NULL;
}

static void search_slot(const Table *in, Search *one)
{
	one->in = in;
	one->found = MAYBE;
	__builtin_prefetch(words(in, SLOTS) + 4ull * slot_of(in, one->page));
	if (in->behind)
		__builtin_prefetch(words(in->behind, SLOTS) + 4ull * slot_of(in->behind, one->page));
}

static void search_block(Search *one)
{
	const uint32_t *slot = page_in(one->in, one->page);
	if (!slot && one->in->behind)
		one->in = one->in->behind, slot = page_in(one->in, one->page);
	if (!slot) {
		one->found = NO;
		return;
	}
	unsigned upper = one->remainder >> 16;
	one->first = slot[1], one->bits = slot[2], one->place = slot[3] - 1;
	one->block = one->first + (uint32_t)__builtin_popcount(one->bits & ((1u << upper) - 1));
	if (one->bits & WHOLE)
		one->found = YES;
	else if (!(one->bits >> upper & 1) || one->block + 1ull >= one->in->count[OFFSETS])
		one->found = one->bits & WHOLE_UNTIL ? MAYBE : NO, one->block = UINT32_MAX;
	else
		__builtin_prefetch(words(one->in, OFFSETS) + one->block);
}

static void search_lows(Search *one)
{
	const Table *in = one->in;
	one->start = one->end = 0;
	if (one->found != MAYBE || one->block == UINT32_MAX)
		return;
	const uint16_t *lows = in->at[LOWS];
	one->start = words(in, OFFSETS)[one->block], one->end = words(in, OFFSETS)[one->block + 1];
	if (one->start > one->end || one->end > in->count[LOWS])
		one->start = one->end = 0;
	/* Most blocks of a large list lie in one or two lines of the cache; of a longer one the middle is read first. */
	__builtin_prefetch(lows + one->start);
	__builtin_prefetch(lows + one->end - (one->end > one->start));
	if (one->end - one->start > LINE_KEYS)
		__builtin_prefetch(lows + one->start + (one->end - one->start) / 2);
}

/* The place of a number in a sorted section; the section's length if it is not there. */
static uint64_t place_of(const Table *in, int section, uint32_t wanted)
{
	uint64_t from = 0, to = in->count[section];
	while (from < to) {
		uint64_t middle = (from + to) / 2;
		if (words(in, section)[middle] < wanted)
			from = middle + 1;
		else
			to = middle;
	}
	return from < in->count[section] && words(in, section)[from] == wanted ? from : in->count[section];
}

static int search_key(const Search *one, double now)
{
	const Table *in = one->in;
	if (one->found != MAYBE)
		return one->found;
	if (one->bits & WHOLE_UNTIL) {
		uint64_t at = place_of(in, TAC_PAGES, one->place);
		if (at < in->count[TAC_ENDS] && words(in, TAC_ENDS)[at] > now)
			return YES;
	}
	const uint16_t *lows = in->at[LOWS], low = one->remainder & 0xFFFF;
	uint64_t from = one->start, count = one->end - one->start;
	/* Without a branch that could be guessed wrong while memory is waited for. */
	while (count > 1) {
		uint64_t half = count / 2;
		from = lows[from + half] <= low ? from + half : from;
		count -= half;
	}
	const uint16_t other = (uint16_t)~low, *last = count ? lows + from : &other;
	int found = *last == low;
	if (!(one->bits & HAS_ENDS) || !found)
		return found;
	/* Of pairs a device may have several rows. */
	uint64_t at = place_of(in, END_PAGES, one->place);
	if (in->count[IMSIS] || at >= in->count[END_PAGES] || one->first >= in->count[OFFSETS])
		return MAYBE;
	uint64_t row = words(in, END_STARTS)[at] + from - words(in, OFFSETS)[one->first];
	if (row >= in->count[ENDS])
		return MAYBE;
	uint32_t end = words(in, ENDS)[row];
	return !end || end > now;
}

/* find(keys, now): for each key, 8 bytes as the machine has them, a byte: NO, YES, or MAYBE. */
static PyObject *table_find(Table *self, PyObject *arguments)
{
	Py_buffer keys;
	double now;
	if (!PyArg_ParseTuple(arguments, "y*d", &keys, &now))
		return NULL;
	PyObject *made = PyBytes_FromStringAndSize(NULL, keys.len / 8);
	char *found = made ? PyBytes_AsString(made) : NULL;
	for (Py_ssize_t from = 0; found && from < keys.len / 8; from += GROUP) {
		Search group[GROUP];
		int count = keys.len / 8 - from < GROUP ? (int)(keys.len / 8 - from) : GROUP;
		for (int i = 0; i < count; i++) {
			uint64_t key = eight_at((const uint8_t *)keys.buf + 8 * (from + i)), page = key / PAGE_KEYS;
			group[i].page = (uint32_t)page, group[i].remainder = (uint32_t)(key % PAGE_KEYS);
			search_slot(self, group + i);
			if (page > UINT32_MAX)	/* not in the hash */
				group[i].page = UINT32_MAX;
		}
		for (int i = 0; i < count; i++)
			search_block(group + i);
		for (int i = 0; i < count; i++)
			search_lows(group + i);
		for (int i = 0; i < count; i++)
			found[from + i] = (char)(group[i].page == UINT32_MAX ? MAYBE : search_key(group + i, now));
	}
	PyBuffer_Release(&keys);
	return made;
}
