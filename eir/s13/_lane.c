/* The express lane, compiled: from a read buffer, learned requests and images of lists to answers and counts.
 *
 * eir/s13/compiled.py says what is learned and what a policy is to it. Here stands what is done with each message: its digits, the
 * lists that have it, the first rule that holds, and its answer's bytes. Messages are taken in groups. What cannot be said here is
 * asked of the general path's own `decide`. Beside this stand the images (_lane_images.h), what is learned (_lane_learned.h) and the
 * rules (_lane_policy.h). */

#include "_lane_policy.h"

static int eight_digits(const uint8_t *at, uint32_t *number)
{
	uint64_t eight = eight_at(at), high = 0xF0F0F0F0F0F0F0F0ull, zeros = 0x3030303030303030ull;
	if ((eight & high) != zeros || ((eight + 0x0606060606060606ull) & high) != zeros)
		return 0;
	eight = (eight & 0x0F0F0F0F0F0F0F0Full) * 2561 >> 8;
	eight = (eight & 0x00FF00FF00FF00FFull) * 6553601 >> 16;
	*number = (uint32_t)((eight & 0x0000FFFF0000FFFFull) * 42949672960001ull >> 32);
	return 1;
}

static int is_digit(uint8_t octet) { return octet >= '0' && octet <= '9'; }

/* Whether the 15th digit is neither the check digit (TS 23.003 annex B) nor a spare 0. */
static int is_wrong_digit(const uint8_t *imei)
{
	int sum = 0, last = imei[KEY_DIGITS] - '0';
	for (int i = 0; i < KEY_DIGITS; i++) {
		int digit = (imei[i] - '0') << (i & 1);
		sum += digit > 9 ? digit - 9 : digit;
	}
	return last && (sum + last) % 10;
}

/* Read what is asked about; 0 if a field is there and no number, which is for the general path to make sense of. */
static int read_fields(Message *of, int strict)
{
	const Layout *layout = of->context->layout;
	const uint8_t *imei = of->at + layout->imei, *imsi = of->at + layout->imsi;
	uint32_t last;
	if (!eight_digits(imei, &of->tac) || !eight_digits(imei + KEY_DIGITS - 8, &last))
		return 0;
	of->snr = last % PAGE_KEYS;
	for (uint32_t i = KEY_DIGITS; i < layout->imei_digits; i++)
		if (!is_digit(imei[i]))
			return 0;
	if (strict && layout->imei_digits == KEY_DIGITS + 1 && is_wrong_digit(imei))
		return 0;
	of->version_at = layout->version ? of->at + layout->version : layout->imei_digits == KEY_DIGITS + 2 ? imei + KEY_DIGITS : NULL;
	of->version = -1;
	if (of->version_at) {
		if (!is_digit(of->version_at[0]) || !is_digit(of->version_at[1]))
			return 0;
		of->version = 10 * (of->version_at[0] - '0') + of->version_at[1] - '0';
	}
	of->imsi = 0, of->imsi_digits = layout->imsi_bytes;
	for (uint32_t i = 0; i < layout->imsi_bytes; i++) {
		if (!is_digit(imsi[i]))
			return 0;
		of->imsi = of->imsi * 10 + imsi[i] - '0';	/* of more than 18 digits it is not read */
	}
	return 1;
}

/* Messages that are looked up together, each step for all of them. */
typedef struct {
	int count;
	Message messages[GROUP];
	Search searches[LISTS][GROUP];
	uint8_t found[GROUP][LISTS];
} Group;

/* Take one more message up, and begin to look for it in all lists. */
static void begin(const Lane *lane, Group *group)
{
	int i = group->count++;
	const Message *of = group->messages + i;
	for (uint32_t number = 0; number < lane->list_count; number++) {
		const List *list = lane->lists + number;
		Search *one = group->searches[number] + i;
		group->found[i][number] = list->table ? YES : NO;
		one->page = of->tac, one->remainder = of->snr;
		if (list->kind == SUBSCRIBERS) {	/* eir.device.imsi_key: the digits behind a 1 */
			uint64_t key = of->imsi;
			if (of->imsi_digits < 6 || of->imsi_digits > 15)
				group->found[i][number] = NO;
			else
				key += power_of_ten(of->imsi_digits);
			one->page = (uint32_t)(key / PAGE_KEYS), one->remainder = (uint32_t)(key % PAGE_KEYS);
		}
		if (list->table)
			search_slot(list->table, one);
	}
}

static void go_on(const Lane *lane, Group *group, void step(Search *))
{
	for (uint32_t number = 0; number < lane->list_count; number++)
		for (int i = 0; lane->lists[number].table && i < group->count; i++)
			step(group->searches[number] + i);
}

static void finish(const Lane *lane, Group *group, int i, double now)
{
	for (uint32_t number = 0; number < lane->list_count; number++)
		if (group->found[i][number] == YES) {
			int has = search_key(group->searches[number] + i, now);
			group->found[i][number] = (uint8_t)(has == YES && lane->lists[number].kind == PAIRS ? MAYBE : has);
		}
}

/* The verdict of the general path: decide(key, imsi, software version, host, realm). OBSERVED with an exception set if that fails. */
static uint32_t ask(const Lane *lane, const Message *of, PyObject *decide_by, PyObject *numbers)
{
	const Layout *layout = of->context->layout;
	const char *imsi = (const char *)of->at + layout->imsi, *version = of->version_at ? (const char *)of->version_at : "";
	unsigned long long key = (unsigned long long)of->tac * PAGE_KEYS + of->snr;
	PyObject *verdict = PyObject_CallFunction(decide_by, "Ks#s#OO", key, imsi, (Py_ssize_t)layout->imsi_bytes, version,
						  (Py_ssize_t)(of->version_at ? 2 : 0), of->context->host, of->context->realm);
	PyObject *number = verdict ? PyObject_GetItem(numbers, verdict) : NULL;
	unsigned long found = number ? PyLong_AsUnsignedLong(number) : OBSERVED;
	Py_XDECREF(number);
	Py_XDECREF(verdict);
	if (!PyErr_Occurred() && found >= lane->verdict_count)
		PyErr_SetString(PyExc_ValueError, "no such verdict");
	return PyErr_Occurred() ? OBSERVED : (uint32_t)found;
}

static int make_room(void **in, size_t *room, size_t wanted)
{
	if (wanted <= *room)
		return 1;
	size_t more = wanted + wanted / 2 + 4096;
	void *grown = PyMem_Realloc(*in, more);
	if (!grown) {
		PyErr_NoMemory();
		return 0;
	}
	*in = grown, *room = more;
	return 1;
}

static int write_answer(Lane *lane, const uint8_t *at, const Context *context, int answer)
{
	const Layout *layout = context->layout;
	uint32_t bytes = context->answer_bytes[answer];
	if (!make_room((void **)&lane->out, &lane->out_room, lane->out_bytes + bytes))
		return 0;
	uint8_t *out = lane->out + lane->out_bytes;
	memcpy(out, context->bytes + context->answer_at[answer], bytes);
	memcpy(out + IDS_AT, at + IDS_AT, IDS);
	memcpy(out + SESSION_AT, at + layout->session, layout->session_bytes);
	lane->out_bytes += bytes;
	return 1;
}

static int answer_group(Lane *lane, const uint8_t *data, Group *group, double now, PyObject *decide_by, PyObject *numbers, const uint8_t *telling)
{
	for (int i = 0; i < group->count; i++) {
		const Message *of = group->messages + i;
		finish(lane, group, i, now);
		uint32_t verdict = decide(lane, of, group->found[i]);
		uint32_t asked = verdict == OBSERVED;
		if (asked && (verdict = ask(lane, of, decide_by, numbers)) == OBSERVED)
			return 0;
		if (!write_answer(lane, of->at, of->context, lane->status_of[verdict]))
			return 0;
		Tally *tally = lane->tallies + verdict;
		tally->count++, tally->at = of->at, tally->context = of->context;
		if (telling && (telling[verdict] || asked)) {
			if (!make_room((void **)&lane->facts, &lane->fact_room, (lane->fact_count + 1) * sizeof(Fact)))
				return 0;
			lane->facts[lane->fact_count++] = (Fact){(uint64_t)of->tac * PAGE_KEYS + of->snr, of->context->number, verdict,
								 (uint32_t)(of->at - data), asked};
		}
	}
	return 1;
}

/* What was answered: for each verdict its number, how many, and of the last one the context, the key and the IMSI. */
static PyObject *told(const Lane *lane)
{
	PyObject *list = PyList_New(0);
	for (uint32_t i = 0; list && i < lane->verdict_count; i++) {
		const Tally *tally = lane->tallies + i;
		if (!tally->count)
			continue;
		Message last = {.at = tally->at, .context = tally->context};
		read_fields(&last, 0);
		const Layout *layout = tally->context->layout;
		PyObject *one = Py_BuildValue("IIIKs#", i, tally->count, tally->context->number, (unsigned long long)last.tac * PAGE_KEYS + last.snr,
					      (const char *)tally->at + layout->imsi, (Py_ssize_t)layout->imsi_bytes);
		if (!one || PyList_Append(list, one))
			Py_CLEAR(list);
		Py_XDECREF(one);
	}
	return list;
}

/* take(data, position, messages_max, now, decide, numbers, telling): position, answers, what was answered, facts. `telling`: for each
 * verdict whether its checks are told of, as those are in any case that `decide` was asked about; empty: none are. */
static PyObject *lane_take(Lane *lane, PyObject *arguments)
{
	Py_buffer data;
	Py_ssize_t position, wanted, telling_bytes;
	double now;
	PyObject *decide_by, *numbers, *result = NULL;
	const char *telling;
	int going = 1;
	if (!PyArg_ParseTuple(arguments, "y*nndOOy#", &data, &position, &wanted, &now, &decide_by, &numbers, &telling, &telling_bytes))
		return NULL;
	if (!is_idle(lane) || !lane->program_words || position < 0 || position > data.len || (telling_bytes && telling_bytes != (Py_ssize_t)lane->verdict_count)) {
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_ValueError, "no policy is bound, no such position, or not as many verdicts");
		PyBuffer_Release(&data);
		return NULL;
	}
	const uint8_t *at = (const uint8_t *)data.buf + position, *end = (const uint8_t *)data.buf + data.len;
	lane->busy = 1, lane->out_bytes = lane->fact_count = 0;
	memset(lane->tallies, 0, lane->verdict_count * sizeof *lane->tallies);
	/* One group is answered while what the next one needs comes from memory. */
	Group groups[2], *group = groups, *before = NULL;
	for (int goes = 1; goes && (before || (going && wanted > 0)); group = groups + (group == groups)) {
		group->count = 0;
		while (going && group->count < GROUP && group->count < wanted) {
			Message *of = group->messages + group->count;
			of->at = at, of->context = recognise(lane, lane->latest, at, (size_t)(end - at));
			going = of->context && read_fields(of, lane->strict);
			if (!going)
				break;
			lane->latest = of->context;
			at += of->context->layout->length;
			begin(lane, group);
		}
		wanted -= group->count;
		go_on(lane, group, search_block);
		goes = !before || answer_group(lane, data.buf, before, now, decide_by, numbers, telling_bytes ? (const uint8_t *)telling : NULL);
		go_on(lane, group, search_lows);
		before = group->count ? group : NULL;
	}
	PyObject *said = PyErr_Occurred() ? NULL : told(lane);
	if (said)
		result = Py_BuildValue("ny#Ny#", (Py_ssize_t)(at - (const uint8_t *)data.buf), (const char *)(lane->out ? lane->out : (uint8_t *)""),
				       (Py_ssize_t)lane->out_bytes, said, lane->facts ? (const char *)lane->facts : "",
				       (Py_ssize_t)(lane->fact_count * sizeof(Fact)));
	lane->busy = 0;
	PyBuffer_Release(&data);
	return result;
}

/* shed(data, position, messages_max): position, answers, how many. */
static PyObject *lane_shed(Lane *lane, PyObject *arguments)
{
	Py_buffer data;
	Py_ssize_t position, wanted, count = 0;
	if (!PyArg_ParseTuple(arguments, "y*nn", &data, &position, &wanted))
		return NULL;
	lane->out_bytes = 0;
	int fits = is_idle(lane) && position >= 0 && position <= data.len;
	while (fits && count < wanted) {
		const uint8_t *at = (const uint8_t *)data.buf + position;
		const Context *context = recognise(lane, lane->latest, at, (size_t)(data.len - position));
		if (!context)
			break;
		fits = write_answer(lane, at, context, SHED);
		position += context->layout->length;
		count++;
	}
	PyBuffer_Release(&data);
	if (!fits && !PyErr_Occurred())
		PyErr_SetString(PyExc_ValueError, "no such position");
	return fits ? Py_BuildValue("ny#n", position, (const char *)(lane->out ? lane->out : (uint8_t *)""), (Py_ssize_t)lane->out_bytes, count) : NULL;
}

static int lane_init(Lane *lane, PyObject *arguments, PyObject *Py_UNUSED(names))
{
	unsigned contexts_max;
	unsigned long long bytes_max, seed;
	if (lane->slots || !PyArg_ParseTuple(arguments, "IKK", &contexts_max, &bytes_max, &seed))
		return -1;
	uint32_t slots = 4;
	while (slots < 2ull * contexts_max && slots < 1u << 24)
		slots *= 2;
	lane->slots = PyMem_Calloc(slots, sizeof *lane->slots);
	lane->all = PyMem_Calloc(slots, sizeof *lane->all);
	lane->slot_mask = slots - 1, lane->contexts_max = slots / 2, lane->bytes_max = bytes_max, lane->seed = seed;
	if (!lane->slots || !lane->all)
		PyErr_NoMemory();
	return lane->slots && lane->all ? 0 : -1;
}

static void lane_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	Lane *lane = (Lane *)self;
	forget_all(lane);
	unbind(lane);
	PyMem_Free(lane->slots), PyMem_Free(lane->all), PyMem_Free(lane->out), PyMem_Free(lane->facts);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyObject *lane_learned(Lane *lane, PyObject *Py_UNUSED(none)) { return Py_BuildValue("IK", lane->contexts, (unsigned long long)lane->bytes); }

#define METHOD(name, function, how) {name, (PyCFunction)(void (*)(void))function, how, NULL}
static PyMethodDef table_methods[] = {METHOD("find", table_find, METH_VARARGS), {0}};
static PyMethodDef lane_methods[] = {
	METHOD("learn", lane_learn, METH_VARARGS), METHOD("forget", lane_forget, METH_NOARGS), METHOD("set_origin", lane_set_origin, METH_VARARGS),
	METHOD("bind", lane_bind, METH_VARARGS), METHOD("take", lane_take, METH_VARARGS), METHOD("shed", lane_shed, METH_VARARGS),
	METHOD("learned", lane_learned, METH_NOARGS), {0},
};
static PyType_Slot table_slots[] = {{Py_tp_init, table_init}, {Py_tp_dealloc, table_dealloc}, {Py_tp_methods, table_methods}, {0}};
static PyType_Slot lane_slots[] = {{Py_tp_init, lane_init}, {Py_tp_dealloc, lane_dealloc}, {Py_tp_methods, lane_methods}, {0}};
static PyType_Spec table_spec = {"eir.s13._lane.Table", sizeof(Table), 0, Py_TPFLAGS_DEFAULT, table_slots};
static PyType_Spec lane_spec = {"eir.s13._lane.Lane", sizeof(Lane), 0, Py_TPFLAGS_DEFAULT, lane_slots};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "eir.s13._lane", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lane(void)
{
	PyObject *made = PyModule_Create(&module), *table = PyType_FromSpec(&table_spec), *lane = PyType_FromSpec(&lane_spec);
	if (!made || !table || !lane || PyModule_AddObjectRef(made, "Table", table) || PyModule_AddObjectRef(made, "Lane", lane)) {
		Py_XDECREF(made), Py_XDECREF(table), Py_XDECREF(lane);
		return NULL;
	}
	table_type = (PyTypeObject *)table;
	Py_DECREF(lane);
	return made;
}
