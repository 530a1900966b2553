/* What the parts of the compiled lane share: an ECR that was read (_ecr.c), images of lists (_image.c), a policy (_policy.c), and the
 * lane that leads from a read buffer to answers (_lane.c). */

#pragma once
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "images of lists are little-endian, and read as they are"
#endif
#pragma GCC visibility push(hidden)

enum { HEADER = 20, KEY_DIGITS = 14, PAGE_KEYS = 1000000, NAME_BYTES_MAX = 255, IMSI_MIN = 6, IMSI_MAX = 15, MSISDN_MIN = 5, MSISDN_MAX = 15 };
enum { APPLICATION = 16777252, COMMAND = 324, SESSION_ID = 263, PROXY_INFO = 284, M_FLAG = 0x40, P_FLAG = 0x40 };
enum { STATUSES = 4, SHED = STATUSES, REPLIES };	/* a request gets the reply of a status, or the one past a limit */
enum { DEVICES, SUBSCRIBERS, PAIRS, FIRST_SEEN };	/* kinds of lists */
enum { PERIOD_DAYS = 32, PERIODS_BEGIN = 19723, PERIOD_MAX = 255 };	/* eir.lists.pages.first_days */
enum { NO, YES, MAYBE };	/* maybe: Python has to say */

typedef struct { const uint8_t *at; uint32_t bytes; } Text;	/* at: NULL if it is not there */

static inline uint32_t padded(uint32_t bytes) { return (bytes + 3) & ~3u; }
static inline uint32_t word_at(const uint8_t *at) { uint32_t word; memcpy(&word, at, 4); return __builtin_bswap32(word); }
static inline uint64_t eight_at(const uint8_t *at) { uint64_t eight; memcpy(&eight, at, 8); return eight; }
static inline void put_word(uint8_t *at, uint32_t word) { word = __builtin_bswap32(word); memcpy(at, &word, 4); }

typedef struct { uint64_t key; uint32_t flags, bytes; Text data; } Avp;	/* key: vendor << 32 | code; bytes: with the header, without padding */

/* The AVP between two places (RFC 6733 4.1): its length with padding; 0 if it does not fit there. */
static inline uint32_t read_avp(const uint8_t *at, const uint8_t *end, Avp *avp) {
	if (end - at < 8)
		return 0;
	uint32_t word = word_at(at + 4), head = word >> 31 ? 12 : 8;
	avp->flags = word >> 24, avp->bytes = word & 0xFFFFFF;
	if (avp->bytes < head || avp->bytes > (uint64_t)(end - at))
		return 0;
	avp->key = (word >> 31 ? (uint64_t)word_at(at + 8) << 32 : 0) | word_at(at);
	avp->data = (Text){at + head, avp->bytes - head};
	return padded(avp->bytes);
}

/* What requests of a peer are held to, and how they are answered; eir.interfaces.s13.lane packs it. */
typedef struct {
	uint32_t bytes_max, avps_max, depth_max, any_host, unknown_m;	/* any_host, unknown_m: lenient: [destination, unknown_m] */
	uint32_t host_words, realm_words, reply_bytes[REPLIES];
	uint64_t words[];	/* hosts and realms of ours, as is_one_of reads them; then for each reply its flags in a word, and the AVPs behind the Session-Id */
} Terms;

typedef struct { const uint64_t *keys; const uint8_t *are_groups; uint64_t count; } Dictionary;	/* of known AVPs, their keys in ascending order */

enum { DEVICE, SIM, VERSION, FIRST_DAY, FIELDS };
#define NOTHING (UINT64_MAX - 1)	/* a field that the request does not have */
#define UNSURE UINT64_MAX		/* an IMSI that has not 15 digits; a first day that is not on record, or has to be recorded */

typedef struct {
	const uint8_t *message;
	uint32_t length, has_proxies;
	Text session, host, realm, imei, imsi, version, msisdn;	/* imsi: digits or nothing; version: two digits or nothing; msisdn: as it came */
	uint64_t imsi_number, fields[FIELDS];	/* imsi_number: of 19 digits at most */
} Ecr;

uint32_t read_ecr(const Terms *terms, const Dictionary *dictionary, const uint8_t *at, size_t left, Ecr *ecr);
Text msisdn_digits(Text octets, uint8_t *digits);
int is_one_of(Text name, const uint64_t *names, uint64_t words);
int are_names(const uint64_t *names, uint64_t words);

enum { VIEWS = 4, DAYS_BYTES = 3 };	/* the days of a device: its first one, and in the last byte the period of its last sighting */

typedef struct {
	Py_buffer views[VIEWS];
	const uint32_t *slots, *offsets;
	const uint16_t *lows;
	const uint8_t *days;	/* of a record of first sightings; otherwise NULL */
	uint32_t slot_mask, offset_count, low_count, shift, today;
	int kind, is_there;	/* not there: never loaded */
} List;

/* A key on its way through an image: each step asks for the memory that the next one reads. */
typedef struct { uint64_t place; uint32_t page, remainder, block, bits, start, end, found; } Search;

static inline uint32_t slot_of(const List *in, uint32_t page) { return page * 0x9E3779B1u >> in->shift; }

int open_list(List *list, PyObject *arrays);
int open_days(List *list, PyObject *days);
void search_blocks(const List *in, Search *all, int count);
void search_lows(const List *in, Search *all, int count);
void search_places(const List *in, Search *all, int count);
int search_key(const Search *one);
uint64_t search_day(const List *in, const Search *one, uint64_t key);

enum { IF_OTHER, IF_LISTED, IF_NOT_LISTED, IF_WITHIN, IF_ORIGIN_HOST, IF_ORIGIN_REALM, LISTS_MAX = 16, VERDICTS_MAX = 1024 };
#define ASK_INSTEAD UINT64_MAX

typedef struct {
	List lists[LISTS_MAX];
	uint64_t *words, word_count, list_count, verdict_count;	/* a verdict is its number, and its status in the upper half of a word */
	unsigned long long sought[SIM + 1];	/* whose messages are for the general path: a device (NOTHING: any; UNSURE: none) with a SIM (NOTHING: any) */
} Policy;

static inline int is_sought(const unsigned long long *one, const uint64_t *fields) {
	return (one[DEVICE] == NOTHING || one[DEVICE] == fields[DEVICE]) && (one[SIM] == NOTHING || one[SIM] == fields[SIM] || fields[SIM] == UNSURE);
}

int is_verdict(const Policy *policy, uint64_t word);
int is_sound(const Policy *policy);
uint64_t decide(const Policy *policy, const Ecr *ecr, const uint8_t *found);
