/* A policy, in words of 4 bytes: for each rule its verdict, its conditions' words in all, and for each of these what it asks, how many
 * words follow, and the words. The last word is the verdict where no rule holds. eir/s13/compiled.py writes it; it is proved when it comes. */

#pragma once
#include "_lane_learned.h"

enum { ASK, LISTED, NOT_LISTED, TAC, IMSI, SOFTWARE_VERSION, ORIGIN, DEVICE };
#define OBSERVED UINT32_MAX

static int is_sound(const Lane *lane, const uint32_t *program, uint32_t count)
{
	uint32_t at = 0;
	if (!count || program[count - 1] >= lane->verdict_count)
		return 0;
	for (count--; at < count;) {
		if (count - at < 2 || program[at + 1] > count - at - 2 || (program[at] != OBSERVED && program[at] >= lane->verdict_count))
			return 0;
		uint32_t end = at + 2 + program[at + 1];
		for (at += 2; at < end; at += 2 + program[at + 1]) {
			if (end - at < 2 || program[at + 1] > end - at - 2)
				return 0;
			uint32_t what = program[at], size = program[at + 1];
			if (((what == LISTED || what == NOT_LISTED) && (size != 1 || program[at + 2] >= lane->list_count)) || what > DEVICE ||
			    ((what == TAC || what == DEVICE) && size % 2) || (what == IMSI && size % 3) || (what == SOFTWARE_VERSION && size != 4) ||
			    (what == ORIGIN && (size != 1 || program[at + 2] > 31)))
				return 0;
			for (uint32_t i = 0; what == IMSI && i < size; i += 3)
				if (program[at + 2 + i] > 18)
					return 0;
		}
	}
	return 1;
}

static void unbind(Lane *lane)
{
	for (uint32_t i = 0; i < lane->list_count; i++)
		Py_XDECREF((PyObject *)lane->lists[i].table);
	PyMem_Free(lane->program);
	memset(lane->lists, 0, sizeof lane->lists);
	lane->program = NULL, lane->program_words = lane->list_count = lane->verdict_count = 0;
}

static PyTypeObject *table_type;

/* bind(program, statuses, lists): a policy in words; each verdict's status; each list as (Table, or None if it was never loaded; kind); strict. */
static PyObject *lane_bind(Lane *lane, PyObject *arguments)
{
	Py_buffer program, statuses;
	PyObject *lists, *result = NULL;
	int strict;
	if (!PyArg_ParseTuple(arguments, "y*y*O!p", &program, &statuses, &PyTuple_Type, &lists, &strict))
		return NULL;
	if (!is_idle(lane))
		goto done;
	unbind(lane);
	if (PyTuple_Size(lists) > LISTS || statuses.len > VERDICTS || program.len % 4 || program.len > UINT32_MAX) {
		PyErr_SetString(PyExc_ValueError, "more lists or verdicts than a policy of the lane can have");
		goto done;
	}
	for (Py_ssize_t i = 0; i < PyTuple_Size(lists); i++) {
		PyObject *table;
		int kind;
		if (!PyArg_ParseTuple(PyTuple_GetItem(lists, i), "Oi", &table, &kind))
			goto done;
		if (table != Py_None && !PyObject_TypeCheck(table, table_type)) {
			PyErr_SetString(PyExc_TypeError, "a list is a Table or None");
			goto done;
		}
		lane->lists[i] = (List){.table = table == Py_None ? NULL : (Table *)Py_NewRef(table), .kind = kind};
		lane->list_count++;
	}
	memcpy(lane->status_of, statuses.buf, (size_t)statuses.len);
	lane->verdict_count = (uint32_t)statuses.len;
	for (Py_ssize_t i = 0; i < statuses.len; i++)
		if (lane->status_of[i] >= STATUSES) {
			PyErr_SetString(PyExc_ValueError, "no such status");
			goto done;
		}
	lane->program = PyMem_Malloc((size_t)program.len + 1);
	if (!lane->program) {
		PyErr_NoMemory();
		goto done;
	}
	memcpy(lane->program, program.buf, (size_t)program.len);
	if (!is_sound(lane, lane->program, (uint32_t)(program.len / 4))) {
		PyErr_SetString(PyExc_ValueError, "a policy that is none");
		goto done;
	}
	lane->program_words = (uint32_t)(program.len / 4);
	lane->strict = strict;
	result = Py_NewRef(Py_None);
done:
	PyBuffer_Release(&program);
	PyBuffer_Release(&statuses);
	return result;
}

static uint64_t power_of_ten(uint32_t exponent)
{
	uint64_t power = 1;
	while (exponent--)
		power *= 10;
	return power;
}

static int imsi_begins(const Message *of, const uint32_t *prefixes, uint32_t count)
{
	if (of->imsi_digits > 18)
		return MAYBE;
	for (uint32_t i = 0; i < count; i += 3) {
		uint32_t digits = prefixes[i];
		uint64_t prefix = prefixes[i + 1] | (uint64_t)prefixes[i + 2] << 32;
		if (digits <= of->imsi_digits && of->imsi / power_of_ten(of->imsi_digits - digits) == prefix)
			return YES;
	}
	return NO;
}

static int condition_holds(const Lane *lane, const Message *of, const uint8_t *found, uint32_t what, const uint32_t *said, uint32_t count)
{
	switch (what) {
	case LISTED:
		return found[said[0]];
	case NOT_LISTED:
		return !lane->lists[said[0]].table ? NO : found[said[0]] == MAYBE ? MAYBE : !found[said[0]];
	case TAC:
		for (uint32_t i = 0; i < count; i += 2)
			if (of->tac >= said[i] && of->tac <= said[i + 1])
				return YES;
		return NO;
	case IMSI:
		return imsi_begins(of, said, count);
	case SOFTWARE_VERSION:
		return of->version >= 0 && said[of->version / 32] >> of->version % 32 & 1;
	case ORIGIN:
		return of->context->origin >> said[0] & 1;
	case DEVICE:
		for (uint32_t i = 0; i < count; i += 2)
			if (of->tac == said[i] && of->snr == said[i + 1])
				return YES;
		return NO;
	default:
		return MAYBE;
	}
}

/* The number of a verdict; OBSERVED if the general path has to say. `found`: for each list, whether it has the message's device or SIM. */
static uint32_t decide(const Lane *lane, const Message *of, const uint8_t *found)
{
	const uint32_t *program = lane->program, end = lane->program_words - 1;
	for (uint32_t at = 0; at < end;) {
		uint32_t verdict = program[at], next = at + 2 + program[at + 1];
		int holds = YES;
		for (at += 2; at < next && holds != NO; at += 2 + program[at + 1]) {
			int this = condition_holds(lane, of, found, program[at], program + at + 2, program[at + 1]);
			holds = this == NO ? NO : this == MAYBE ? MAYBE : holds;
		}
		if (holds == MAYBE || (holds == YES && verdict == OBSERVED))
			return OBSERVED;
		if (holds == YES)
			return verdict;
		at = next;
	}
	return program[end];
}
