/* Requests that were learned, and the lane that keeps them: which of them a message is like. Nothing is read behind the buffer: a message
 * is looked at only if all of it is there, and then only at places that were inside the message it is like, which has the same length. */

#pragma once
#include "_lane_images.h"

enum { HEADER = 20, IDS_AT = 12, IDS = 8, SESSION_AT = 28, KEY_DIGITS = 14, TAC_DIGITS = 8 };
enum { LISTS = 16, MESSAGE_MAX = 2048, VERDICTS = 1024, CHAINS = MESSAGE_MAX / 4 + 1, PROBES = 32 };
enum { STATUSES = 4, SHED = STATUSES, ANSWERS };	/* how a request may be answered: by a status, or past a limit */
enum { DEVICES, SUBSCRIBERS, PAIRS };

static uint32_t word_at(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

typedef struct Layout {	/* requests that have the same fields in the same places */
	struct Layout *next;	/* of the same length */
	uint32_t length, session, session_bytes, imei, imei_digits, version, imsi, imsi_bytes;	/* version, imsi: 0 if there is none */
	uint32_t shape_count;
	const uint32_t *shape;	/* where a word is, and what it is: what tells layouts apart */
	const uint8_t *mask;	/* ones where a request has to be as the one that was learned; whole words of 8 bytes */
	uint32_t key_bytes;
	const uint8_t *key;	/* all of the above, as it came */
} Layout;

typedef struct {	/* requests that are alike but for what is read of each */
	uint64_t hash;
	Layout *layout;
	uint8_t *bytes;		/* under the mask; then the answers */
	uint32_t number, origin;
	uint32_t answer_at[ANSWERS], answer_bytes[ANSWERS];
	PyObject *host, *realm;
} Context;

typedef struct {
	Table *table;	/* NULL: never loaded */
	int kind;
} List;

typedef struct {	/* a message of a group */
	const uint8_t *at;
	const Context *context;
	uint64_t imsi;
	uint32_t tac, snr, imsi_digits;
	int32_t version;
	const uint8_t *version_at;
} Message;

typedef struct {
	uint32_t count;
	const uint8_t *at;
	const Context *context;
} Tally;

/* What is told of each answered message, if it is asked for (compiled.py: FACTS). */
typedef struct {
	uint64_t key;
	uint32_t context, verdict, at, asked;
} Fact;

typedef struct {
	PyObject_HEAD
	Layout *chains[CHAINS];
	Context **slots;	/* open addressing */
	Context **all;
	uint32_t slot_mask, contexts, contexts_max;
	uint64_t bytes, bytes_max, seed;
	const Context *latest;
	List lists[LISTS];
	uint32_t list_count;
	uint32_t *program;
	uint32_t program_words, verdict_count;
	uint8_t status_of[VERDICTS];
	int strict;	/* a wrong check digit is for the general path */
	Tally tallies[VERDICTS];
	uint8_t *out;
	size_t out_bytes, out_room;
	Fact *facts;
	size_t fact_count, fact_room;
	int busy;
} Lane;

static uint64_t masked_hash(const Lane *lane, const Layout *layout, const uint8_t *at)
{
	const uint64_t factor = 0x9E3779B97F4A7C15ull;
	uint64_t a = lane->seed, b = ~lane->seed;
	uint32_t i = 0;
	for (; i + 16 <= layout->length; i += 16) {
		a = (a ^ (eight_at(at + i) & eight_at(layout->mask + i))) * factor;
		b = (b ^ (eight_at(at + i + 8) & eight_at(layout->mask + i + 8))) * factor;
		a ^= a >> 29, b ^= b >> 31;
	}
	for (; i < layout->length; i += 4) {	/* a message is as long as some words of 4 bytes (RFC 6733 3) */
		uint32_t four, mask;
		memcpy(&four, at + i, 4);
		memcpy(&mask, layout->mask + i, 4);
		a = (a ^ (four & mask)) * factor;
		a ^= a >> 29;
	}
	a = (a ^ (b << 1)) * factor;
	return a ^ a >> 32;
}

static int is_alike(const Context *context, const uint8_t *at)
{
	const Layout *layout = context->layout;
	uint64_t differs = 0;
	uint32_t i = 0;
	for (; i + 8 <= layout->length; i += 8)
		differs |= (eight_at(at + i) ^ eight_at(context->bytes + i)) & eight_at(layout->mask + i);
	for (; i < layout->length; i++)
		differs |= (uint8_t)((at[i] ^ context->bytes[i]) & layout->mask[i]);
	return !differs;
}

static int has_shape(const Layout *layout, const uint8_t *at)
{
	for (uint32_t i = 0; i < layout->shape_count; i++)
		if (word_at(at + layout->shape[2 * i]) != layout->shape[2 * i + 1])
			return 0;
	return 1;
}

/* The learned request that a message is like; NULL if there is none, or the message is not all there. */
static const Context *recognise(const Lane *lane, const Context *latest, const uint8_t *at, size_t left)
{
	if (left < HEADER)
		return NULL;
	uint32_t length = word_at(at) & 0xFFFFFF;
	if (length > left || length > MESSAGE_MAX || length & 3)
		return NULL;
	if (latest && latest->layout->length == length && is_alike(latest, at))
		return latest;
	for (const Layout *layout = lane->chains[length / 4]; layout; layout = layout->next) {
		if (!has_shape(layout, at))
			continue;
		uint64_t hash = masked_hash(lane, layout, at);
		for (uint32_t i = 0; i < PROBES; i++) {
			const Context *found = lane->slots[(hash + i) & lane->slot_mask];
			if (!found)
				break;
			if (found->hash == hash && found->layout == layout && is_alike(found, at))
				return found;
		}
	}
	return NULL;
}

static void forget_all(Lane *lane)
{
	for (uint32_t i = 0; i < lane->contexts; i++) {
		Py_XDECREF(lane->all[i]->host);
		Py_XDECREF(lane->all[i]->realm);
		PyMem_Free(lane->all[i]->bytes);
		PyMem_Free(lane->all[i]);
	}
	for (int i = 0; i < CHAINS; i++)
		for (Layout *next, *layout = lane->chains[i]; layout; layout = next) {
			next = layout->next;
			PyMem_Free((void *)layout->key);
			PyMem_Free((void *)layout->mask);
			PyMem_Free(layout);
		}
	memset(lane->chains, 0, sizeof lane->chains);
	if (lane->slots)
		memset(lane->slots, 0, (lane->slot_mask + 1ull) * sizeof *lane->slots);
	lane->contexts = 0, lane->bytes = 0, lane->latest = NULL;
}

static int is_idle(const Lane *lane)
{
	if (lane->busy)
		PyErr_SetString(PyExc_RuntimeError, "the lane is answering");
	return !lane->busy;
}

/* The layout of this message with these places, which are words of 4 bytes and begin with those of the struct; a new one if need be. */
static Layout *layout_for(Lane *lane, Py_buffer *message, Py_buffer *mask, Py_buffer *places)
{
	uint32_t at[8], bytes = (uint32_t)places->len;
	Layout **chain = &lane->chains[message->len / 4];
	for (Layout *layout = *chain; layout; layout = layout->next)
		if (layout->key_bytes == bytes && !memcmp(layout->key, places->buf, bytes) && !memcmp(layout->mask, mask->buf, (size_t)message->len))
			return layout;
	memcpy(at, places->buf, sizeof at);
	int fits = at[0] == (uint32_t)message->len && at[3] + (uint64_t)at[4] <= at[0] && at[4] >= KEY_DIGITS && at[4] <= KEY_DIGITS + 2;
	fits &= at[1] + (uint64_t)at[2] <= at[0] && at[5] + 2ull <= at[0] && at[6] + (uint64_t)at[7] <= at[0];
	for (uint32_t i = sizeof at; fits && i < bytes; i += 8) {
		uint32_t shape_at;
		memcpy(&shape_at, (const uint8_t *)places->buf + i, 4);
		fits &= shape_at + 4ull <= at[0];
	}
	if (!fits) {
		PyErr_SetString(PyExc_ValueError, "fields outside of the message");
		return NULL;
	}
	Layout *layout = PyMem_Calloc(1, sizeof *layout);
	uint8_t *key = PyMem_Malloc(bytes), *copy = PyMem_Malloc((size_t)message->len);
	if (!layout || !key || !copy) {
		PyMem_Free(layout), PyMem_Free(key), PyMem_Free(copy);
		PyErr_NoMemory();
		return NULL;
	}
	memcpy(key, places->buf, bytes);
	memcpy(copy, mask->buf, (size_t)message->len);
	*layout = (Layout){.next = *chain, .length = at[0], .session = at[1], .session_bytes = at[2], .imei = at[3], .imei_digits = at[4],
			   .version = at[5], .imsi = at[6], .imsi_bytes = at[7], .key = key, .key_bytes = bytes, .mask = copy,
			   .shape = (const uint32_t *)(const void *)(key + sizeof at), .shape_count = (bytes - (uint32_t)sizeof at) / 8};
	lane->bytes += sizeof *layout + bytes + (uint64_t)message->len;
	return *chain = layout;
}

/* learn(message, mask, places, host, realm, origin, answers): the context's number; None if there is no room. */
static PyObject *lane_learn(Lane *lane, PyObject *arguments)
{
	Py_buffer message, mask, places;
	PyObject *host, *realm, *answers, *result = NULL;
	unsigned origin;
	if (!PyArg_ParseTuple(arguments, "y*y*y*UUIO!", &message, &mask, &places, &host, &realm, &origin, &PyTuple_Type, &answers))
		return NULL;
	Context *made = NULL;
	char *octets[ANSWERS];
	Py_ssize_t sizes[ANSWERS], total = message.len;
	if (!is_idle(lane))
		goto done;
	if (message.len < SESSION_AT || message.len > MESSAGE_MAX || message.len % 4 || mask.len != message.len || places.len < 32 || places.len % 8 ||
	    places.len > 8 * MESSAGE_MAX || PyTuple_Size(answers) != ANSWERS) {
		PyErr_SetString(PyExc_ValueError, "a request that cannot be learned");
		goto done;
	}
	for (int i = 0; i < ANSWERS; i++) {
		if (PyBytes_AsStringAndSize(PyTuple_GetItem(answers, i), &octets[i], &sizes[i]))
			goto done;
		total += sizes[i];
	}
	Layout *layout = layout_for(lane, &message, &mask, &places);
	if (!layout)
		goto done;
	for (int i = 0; i < ANSWERS; i++)
		if (sizes[i] < SESSION_AT + (Py_ssize_t)layout->session_bytes) {
			PyErr_SetString(PyExc_ValueError, "an answer that is too short");
			goto done;
		}
	uint64_t hash = masked_hash(lane, layout, message.buf);
	uint32_t probe = 0;
	while (probe < PROBES && lane->slots[(hash + probe) & lane->slot_mask])
		probe++;
	if (probe == PROBES || lane->contexts == lane->contexts_max || lane->bytes + (uint64_t)total + sizeof *made > lane->bytes_max) {
		result = Py_NewRef(Py_None);
		goto done;
	}
	made = PyMem_Calloc(1, sizeof *made);
	uint8_t *bytes = made ? PyMem_Malloc((size_t)total) : NULL;
	if (!bytes) {
		PyMem_Free(made);
		PyErr_NoMemory();
		goto done;
	}
	*made = (Context){.hash = hash, .layout = layout, .bytes = bytes, .number = lane->contexts, .origin = origin, .host = Py_NewRef(host), .realm = Py_NewRef(realm)};
	memcpy(bytes, message.buf, (size_t)message.len);
	uint32_t at = (uint32_t)message.len;
	for (int i = 0; i < ANSWERS; at += (uint32_t)sizes[i++]) {
		memcpy(bytes + at, octets[i], (size_t)sizes[i]);
		made->answer_at[i] = at, made->answer_bytes[i] = (uint32_t)sizes[i];
	}
	lane->bytes += (uint64_t)total + sizeof *made;
	lane->slots[(hash + probe) & lane->slot_mask] = lane->all[lane->contexts++] = made;
	result = PyLong_FromUnsignedLong(made->number);
done:
	PyBuffer_Release(&message);
	PyBuffer_Release(&mask);
	PyBuffer_Release(&places);
	return result;
}

static PyObject *lane_forget(Lane *lane, PyObject *Py_UNUSED(none))
{
	if (!is_idle(lane))
		return NULL;
	forget_all(lane);
	return Py_NewRef(Py_None);
}

/* set_origin(context, bits): which conditions on the origin hold for the requests of a context. */
static PyObject *lane_set_origin(Lane *lane, PyObject *arguments)
{
	unsigned context, bits;
	if (!PyArg_ParseTuple(arguments, "II", &context, &bits) || !is_idle(lane))
		return NULL;
	if (context >= lane->contexts) {
		PyErr_SetString(PyExc_IndexError, "no such context");
		return NULL;
	}
	lane->all[context]->origin = bits;
	return Py_NewRef(Py_None);
}
