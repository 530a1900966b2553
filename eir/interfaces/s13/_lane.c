/* The express lane, compiled: from a read buffer to answers and counts, with no state from one call to the next. One group of messages is
 * answered while what the next one needs comes from memory. What cannot be decided here is asked of the policy's own `decide`. */

#include "_lane.h"

enum { GROUP = 32, IDENTIFIER_MAX = 32, STREAMS = 2, TEXTS = 6 };	/* streams: what the record is told, of plain verdicts and of others */

typedef struct { PyObject_HEAD Policy policy; Dictionary dictionary; Py_buffer keys, are_groups; } Lane;

typedef struct {	/* messages that are looked up together, each step for all of them */
	int count;
	Ecr ecrs[GROUP];
	Search searches[LISTS_MAX][GROUP];
	uint8_t is_asked[LISTS_MAX][GROUP];
} Group;

typedef struct { uint8_t *at; size_t bytes, room; } Buffer;

typedef struct { Text host, imsi; uint64_t count, device; } Tally;	/* of a verdict: of the last check what the log shows; how many */

typedef struct {	/* of one call */
	const Policy *policy;
	const Dictionary *dictionary;
	const Terms *terms;
	const uint8_t *at, *end, *telling, *replies[REPLIES];	/* at: behind what was answered; telling: for each verdict its stream + 1, or 0 */
	PyObject *decide_by;	/* None: all get the reply past a limit */
	Buffer answers, rows[STREAMS], texts[STREAMS];
	Tally *tallies;
	Py_ssize_t wanted, answered;
} Call;

#define AS_TEXT(text) (const char *)((text).at ? (text).at : (const uint8_t *)""), (Py_ssize_t)(text).bytes

static uint64_t power_of_ten(uint32_t exponent) { return exponent ? 10 * power_of_ten(exponent - 1) : 1; }

/* Make a buffer longer. Returns where the new bytes begin; NULL with an exception if there is no memory. */
static uint8_t *longer(Buffer *by, size_t bytes) {
	if (by->room - by->bytes < bytes) {
		size_t room = 2 * by->room + bytes + 1024;
		uint8_t *grown = PyMem_Realloc(by->at, room);
		if (!grown)
			return (void)PyErr_NoMemory(), NULL;
		by->at = grown, by->room = room;
	}
	return by->at + (by->bytes += bytes) - bytes;
}

/* Put octets with padding. Their padding is no part of an AVP, and ours is zero (RFC 6733 4.1). */
static uint8_t *put_padded(uint8_t *at, const uint8_t *octets, uint32_t bytes) {
	if (bytes % 4)
		memset(at + padded(bytes) - 4, 0, 4);
	memcpy(at, octets, bytes);
	return at + padded(bytes);
}

/* The answer, as eir.wire.diameter.message.encode_answer makes it: ids, P bit, Session-Id and Proxy-Info are the request's. */
static int write_answer(Call *call, const Ecr *ecr, uint64_t reply) {
	const Text session = ecr->session, tail = {call->replies[reply] + 8, call->terms->reply_bytes[reply]};
	const uint8_t *first = ecr->message + HEADER, *end = ecr->message + ecr->length;
	uint32_t bytes = HEADER + 8 + padded(session.bytes) + tail.bytes, step;
	Avp avp = {0};
	for (const uint8_t *at = first; ecr->has_proxies && at < end; at += step)
		step = read_avp(at, end, &avp), bytes += avp.key == PROXY_INFO ? step : 0;
	uint8_t *out = longer(&call->answers, bytes), *last = out + bytes;
	if (!out)
		return 0;
	put_word(out, 1u << 24 | bytes);
	put_word(out + 4, (uint32_t)((ecr->message[4] & P_FLAG) | tail.at[-8]) << 24 | COMMAND);
	memcpy(out + 8, ecr->message + 8, HEADER - 8);
	put_word(out + HEADER, SESSION_ID), put_word(out + HEADER + 4, (uint32_t)M_FLAG << 24 | (8 + session.bytes));
	out = put_padded(out + HEADER + 8, session.at, session.bytes);
	out = put_padded(out, tail.at, tail.bytes);
	for (const uint8_t *at = first; out < last; at += step) {
		step = read_avp(at, end, &avp);
		if (avp.key == PROXY_INFO)
			out = put_padded(out, at, avp.bytes);
	}
	return 1;
}

/* Tell the record of a message: the number of its verdict, and texts with a line break behind each. */
static int tell(Call *call, const Ecr *ecr, uint32_t verdict) {
	const Text imsi = {ecr->imsi.at, ecr->imsi.bytes < IDENTIFIER_MAX ? ecr->imsi.bytes : IDENTIFIER_MAX};
	uint8_t digits[MSISDN_MAX];
	const Text texts[TEXTS] = {ecr->host, ecr->realm, ecr->imei, imsi, ecr->version, msisdn_digits(ecr->msisdn, digits)};
	int stream = call->telling[verdict] - 1;
	uint16_t number = (uint16_t)verdict;
	uint8_t *row = longer(call->rows + stream, sizeof number), *text = row;
	if (row)
		memcpy(row, &number, sizeof number);
	for (const Text *one = texts; text && one < texts + TEXTS; one++)
		if ((text = longer(call->texts + stream, one->bytes + 1)))
			memcpy(text, one->bytes ? one->at : text, one->bytes), text[one->bytes] = '\n';
	return text != NULL;
}

/* The verdict of the general path: decide_by(key, IMEI, IMSI, version, Origin-Host, Origin-Realm, MSISDN) gives it, and tells the record.
 * ASK_INSTEAD if that fails: the general path will find out by itself. */
static uint64_t ask(const Call *call, const Ecr *ecr) {
	uint8_t digits[MSISDN_MAX];
	const Text msisdn = msisdn_digits(ecr->msisdn, digits);
	PyObject *said = PyObject_CallFunction(call->decide_by, "Ks#s#s#s#s#s#", (unsigned long long)ecr->fields[DEVICE], AS_TEXT(ecr->imei), AS_TEXT(ecr->imsi),
						 AS_TEXT(ecr->version), AS_TEXT(ecr->host), AS_TEXT(ecr->realm), AS_TEXT(msisdn));
	uint64_t verdict = said ? PyLong_AsUnsignedLongLong(said) : ASK_INSTEAD;
	Py_XDECREF(said);
	PyErr_Clear();
	return is_verdict(call->policy, verdict) ? verdict : ASK_INSTEAD;
}

/* Answer a group. 0 if that had to stop: by an exception, or at a message that the general path has to answer. */
static int answer(Call *call, Group *group) {
	const Policy *policy = call->policy;
	for (int i = 0; i < group->count; i++, call->answered++) {
		Ecr *ecr = group->ecrs + i;
		uint8_t found[LISTS_MAX];
		ecr->fields[FIRST_DAY] = UNSURE;
		for (uint64_t number = 0; number < policy->list_count; number++) {
			const List *list = policy->lists + number;
			const Search *one = group->searches[number] + i;
			found[number] = NO;
			if (!group->is_asked[number][i])
				continue;
			if (list->kind == FIRST_SEEN)
				ecr->fields[FIRST_DAY] = search_day(list, one, ecr->fields[DEVICE]);
			else
				found[number] = (uint8_t)search_key(one);
			if (found[number] == YES && list->kind == PAIRS)
				found[number] = MAYBE;
		}
		uint64_t verdict = call->decide_by == Py_None ? (uint64_t)SHED << 32 : decide(policy, ecr, found);
		int is_told = verdict == ASK_INSTEAD;
		if (is_told && (verdict = ask(call, ecr)) == ASK_INSTEAD)
			return 0;
		uint32_t number = (uint32_t)verdict;
		if (!write_answer(call, ecr, verdict >> 32) || (call->telling && call->telling[number] && !is_told && !tell(call, ecr, number)))
			return 0;
		call->tallies[number] = (Tally){ecr->host, ecr->imsi, call->tallies[number].count + 1, ecr->fields[DEVICE]};
		call->at = ecr->message + ecr->length;
	}
	return 1;
}

static void step(const Policy *policy, Group *group, void search(const List *, Search *, int)) {
	for (const List *list = policy->lists; list < policy->lists + policy->list_count; list++)
		if (list->is_there)
			search(list, group->searches[list - policy->lists], group->count);
}

/* Read the next message, and begin to look for it in all lists. Returns its length; 0 if it is for the general path. */
static uint32_t begin(const Call *call, const uint8_t *at, Group *group, int i) {
	Ecr *ecr = group->ecrs + i;
	uint32_t length = read_ecr(call->terms, call->dictionary, at, (size_t)(call->end - at), ecr), digits = ecr->imsi.bytes;
	if (!length || is_sought(call->policy->sought, ecr->fields))
		return 0;
	for (uint64_t number = 0; number < call->policy->list_count; number++) {
		const List *list = call->policy->lists + number;
		Search *one = group->searches[number] + i;
		uint64_t key = ecr->fields[DEVICE];
		if (list->kind == SUBSCRIBERS)	/* eir.device.imsi_key: the digits behind a 1 */
			key = digits >= IMSI_MIN && digits <= IMSI_MAX ? ecr->imsi_number + power_of_ten(digits) : UINT64_MAX;
		one->page = (uint32_t)(key / PAGE_KEYS), one->remainder = (uint32_t)(key % PAGE_KEYS);
		group->is_asked[number][i] = list->is_there && key != UINT64_MAX;
		if (list->is_there)
			__builtin_prefetch(list->slots + 4ull * slot_of(list, one->page));
	}
	return length;
}

static int take_groups(Call *call) {
	Group groups[2], *group = groups, *before = NULL;
	const uint8_t *at = call->at;
	for (uint32_t length = 1; before || (length && call->wanted > 0); group = groups + (group == groups)) {
		for (group->count = 0; length && group->count < GROUP && call->wanted > 0 && (length = begin(call, at, group, group->count)); group->count++, call->wanted--)
			at += length;
		if (before)
			step(call->policy, before, search_places);
		step(call->policy, group, search_blocks);
		if (before && !answer(call, before))
			break;
		step(call->policy, group, search_lows);
		before = group->count ? group : NULL;
	}
	return !PyErr_Occurred();
}

static PyObject *counted(const Call *call) {
	PyObject *list = PyList_New(0);
	for (uint32_t i = 0; list && i < call->policy->verdict_count; i++) {
		const Tally *tally = call->tallies + i;
		if (!tally->count)
			continue;
		PyObject *one = Py_BuildValue("IKs#Ks#", i, (unsigned long long)tally->count, AS_TEXT(tally->host), (unsigned long long)tally->device, AS_TEXT(tally->imsi));
		if (!one || PyList_Append(list, one))
			Py_CLEAR(list);
		Py_XDECREF(one);
	}
	return list;
}

/* True if the terms of a peer are what eir.interfaces.s13.lane packs; then it is known where the replies are. */
static int have_terms(Call *call, Py_ssize_t bytes) {
	const Terms *terms = call->terms;
	size_t at = sizeof *terms;
	if ((size_t)bytes < at || ((size_t)bytes - at) / 8 < (size_t)terms->host_words + terms->realm_words)
		return 0;
	int good = are_names(terms->words, terms->host_words) && are_names(terms->words + terms->host_words, terms->realm_words);
	at += 8 * ((size_t)terms->host_words + terms->realm_words);
	for (int i = 0; i < REPLIES; at += 8 + terms->reply_bytes[i++])
		call->replies[i] = (const uint8_t *)terms + at, good &= terms->reply_bytes[i] % 4 == 0;
	return good && at == (size_t)bytes;
}

static PyObject *lane_take(Lane *lane, PyObject *arguments) {
	Call call = {.policy = &lane->policy, .dictionary = &lane->dictionary};
	Py_buffer data;
	Py_ssize_t terms, position, telling;
	PyObject *result = NULL, *counts;
	if (!PyArg_ParseTuple(arguments, "y#y*nnOy#", &call.terms, &terms, &data, &position, &call.wanted, &call.decide_by, &call.telling, &telling))
		return NULL;
	if (telling != (Py_ssize_t)call.policy->verdict_count)
		call.telling = NULL;
	call.at = (const uint8_t *)data.buf + position, call.end = (const uint8_t *)data.buf + data.len;
	call.tallies = PyMem_Calloc(call.policy->verdict_count + 1, sizeof *call.tallies);
	call.answers = (Buffer){PyMem_Malloc((size_t)data.len), 0, (size_t)data.len};	/* answers are mostly shorter than their requests */
	if (!call.tallies || !call.answers.at || position < 0 || position > data.len || !call.policy->words || !have_terms(&call, terms))
		PyErr_SetString(PyExc_ValueError, "no such position, or not the terms of a peer");
	else if (take_groups(&call) && (counts = counted(&call)))
		result = Py_BuildValue("ny#nN(y#y#)(y#y#)", (Py_ssize_t)(call.at - (const uint8_t *)data.buf), AS_TEXT(call.answers), call.answered, counts,
				       AS_TEXT(call.rows[0]), AS_TEXT(call.texts[0]), AS_TEXT(call.rows[1]), AS_TEXT(call.texts[1]));
	for (int i = 0; i < STREAMS; i++)
		PyMem_Free(call.rows[i].at), PyMem_Free(call.texts[i].at);
	PyMem_Free(call.answers.at), PyMem_Free(call.tallies);
	PyBuffer_Release(&data);
	return result;
}

static int lane_init(Lane *lane, PyObject *arguments, PyObject *Py_UNUSED(names)) {
	Policy *policy = &lane->policy;
	Py_ssize_t bytes;
	const char *words;
	unsigned verdicts;
	PyObject *lists, *arrays, *days;
	if (policy->words || !PyArg_ParseTuple(arguments, "y#IO!y*y*KK", &words, &bytes, &verdicts, &PyTuple_Type, &lists, &lane->keys, &lane->are_groups, policy->sought + DEVICE, policy->sought + SIM))
		return -1;
	lane->dictionary = (Dictionary){lane->keys.buf, lane->are_groups.buf, (uint64_t)lane->are_groups.len};
	int fits = PyTuple_Size(lists) <= LISTS_MAX && verdicts <= VERDICTS_MAX && lane->keys.len == 8 * lane->are_groups.len;
	for (Py_ssize_t i = 0; fits && i < PyTuple_Size(lists); i++, policy->list_count++) {
		List *list = policy->lists + i;
		if (!PyArg_ParseTuple(PyTuple_GetItem(lists, i), "OiOI", &arrays, &list->kind, &days, &list->today) || (arrays != Py_None && !open_list(list, arrays)))
			return -1;
		if (list->kind == FIRST_SEEN && list->is_there && !open_days(list, days))
			return -1;
	}
	policy->verdict_count = verdicts, policy->word_count = (uint64_t)bytes / 8;
	if (fits && (policy->words = PyMem_Calloc(1, (size_t)bytes + 8)))
		memcpy(policy->words, words, (size_t)bytes);
	if (!policy->words || !is_sound(policy))
		PyErr_SetString(PyExc_ValueError, "not the program of a policy, or one of more lists or verdicts than the lane can have");
	return PyErr_Occurred() ? -1 : 0;
}

static void lane_dealloc(PyObject *self) {
	PyTypeObject *type = Py_TYPE(self);
	Lane *lane = (Lane *)self;
	for (int i = 0; i < VIEWS * LISTS_MAX; i++)
		PyBuffer_Release(lane->policy.lists[i / VIEWS].views + i % VIEWS);
	PyBuffer_Release(&lane->keys), PyBuffer_Release(&lane->are_groups);
	PyMem_Free(lane->policy.words);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyMethodDef lane_methods[] = {{"take", (PyCFunction)(void (*)(void))lane_take, METH_VARARGS, "Answer messages, up to the first for the general path. See _lane.pyi."}, {0}};
static PyType_Slot lane_slots[] = {{Py_tp_init, lane_init}, {Py_tp_dealloc, lane_dealloc}, {Py_tp_methods, lane_methods}, {0}};
static PyType_Spec lane_spec = {"eir.interfaces.s13._lane.Lane", sizeof(Lane), 0, Py_TPFLAGS_DEFAULT, lane_slots};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "eir.interfaces.s13._lane", NULL, -1, NULL, NULL, NULL, NULL, NULL};

#define CONSTANT(name) {#name, name}
/* What Python knows too: eir/interfaces/s13/lane.py compares. */
static const struct { const char *name; long value; } constants[] = {
	CONSTANT(IF_OTHER), CONSTANT(IF_LISTED), CONSTANT(IF_NOT_LISTED), CONSTANT(IF_WITHIN), CONSTANT(IF_ORIGIN_HOST), CONSTANT(IF_ORIGIN_REALM), CONSTANT(DEVICE),
	CONSTANT(SIM), CONSTANT(VERSION), CONSTANT(FIRST_DAY), CONSTANT(DEVICES), CONSTANT(SUBSCRIBERS), CONSTANT(PAIRS), CONSTANT(FIRST_SEEN), CONSTANT(PERIOD_DAYS), CONSTANT(PERIODS_BEGIN), CONSTANT(STATUSES), CONSTANT(LISTS_MAX), CONSTANT(VERDICTS_MAX),
	CONSTANT(KEY_DIGITS), CONSTANT(PAGE_KEYS), CONSTANT(IDENTIFIER_MAX), CONSTANT(TEXTS), CONSTANT(IMSI_MIN), CONSTANT(IMSI_MAX), CONSTANT(MSISDN_MIN), CONSTANT(MSISDN_MAX), CONSTANT(APPLICATION), CONSTANT(COMMAND),
};

PyMODINIT_FUNC PyInit__lane(void) {
	PyObject *made = PyModule_Create(&module), *lane = PyType_FromSpec(&lane_spec);
	int good = made && lane && !PyModule_AddObjectRef(made, "Lane", lane);
	for (size_t i = 0; good && i < sizeof constants / sizeof *constants; i++)
		good = !PyModule_AddIntConstant(made, constants[i].name, constants[i].value);
	Py_XDECREF(lane);
	return good ? made : (Py_XDECREF(made), NULL);
}
