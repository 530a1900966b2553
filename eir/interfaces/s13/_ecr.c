/* An ECR, read by the grammar of TS 29.272 7.2.19 (eir/interfaces/s13/application.py), level by level. What is taken is what the general path answers by
 * a verdict; anything else is left to it, which costs that message alone. Nothing outside of the buffer is read. */

#include "_lane.h"

enum { USER_NAME = 1, AUTH_APPLICATION_ID = 258, ACCT_APPLICATION_ID, VENDOR_SPECIFIC_APPLICATION_ID, ORIGIN_HOST = 264, VENDOR_ID = 266 };
enum { AUTH_SESSION_STATE = 277, ROUTE_RECORD = 282, DESTINATION_REALM, DESTINATION_HOST = 293, ORIGIN_REALM = 296, DRMP = 301 };
enum { MSISDN = 701, TERMINAL_INFORMATION = 1401, IMEI, SOFTWARE_VERSION, MEID = 1471 };
#define OF_3GPP(code) (10415ull << 32 | (code))
enum Level { AT_TOP, IN_TERMINAL_INFORMATION, IN_APPLICATION_ID, IN_OTHER };

typedef struct { Text to_host, to_realm, terminal, application; } Aside;	/* what an Ecr does not keep */

/* AVPs that may stand once on their level, and those without which an ECR is not one that can be answered here. */
enum { SESSION = 1, HOST = 2, REALM = 4, STATE = 8, TO_HOST = 16, TO_REALM = 32, TERMINAL = 64, USER = 128, APPLICATION_ID = 256, AUTH = 512, ACCT = 1024,
       DEVICE_ID = 2048, DEVICE_VERSION = 4096, OTHER_ID = 8192, VENDOR = 16384, ID = 32768 };
enum { REQUIRED = SESSION | HOST | REALM | STATE | TO_REALM | TERMINAL | DEVICE_ID, APPLICATION_PARTS = VENDOR | ID };

/* The place of an AVP in the dictionary; its length if the AVP is not known. */
static uint64_t place_of(const Dictionary *in, uint64_t key) {
	uint64_t from = 0;
	for (uint64_t to = in->count, middle; from < to;)
		if (in->keys[middle = (from + to) / 2] < key)
			from = middle + 1;
		else
			to = middle;
	return from < in->count && in->keys[from] == key ? from : in->count;
}

#define EACH(octet) (0x0101010101010101ull * (octet))

/* The last octets of an AVP's data, 1 to 8 of them, the first one in the lowest byte, behind those of a filling. Eight are read at once:
 * what stands before the data is the AVP's header. */
static inline uint64_t last_of(Text text, uint32_t count, uint64_t filling) {
	uint64_t unread = count < 8 ? UINT64_MAX >> 8 * count : 0;
	return (eight_at(text.at + text.bytes - 8) & ~unread) | (filling & unread);
}

/* The highest bit of each of eight octets: set if that is printable ASCII and no blank. */
static inline uint64_t printable(uint64_t eight) { return (eight + EACH(0x80 - '!')) & ~(eight + EACH(0x7F - '~')) & EACH(0x80); }

/* True for a DiameterIdentity: 1 to 255 octets of printable ASCII (eir.wire.diameter.dictionary). */
static int is_name(Text text) {
	if (!text.bytes || text.bytes > NAME_BYTES_MAX)
		return 0;
	uint64_t good = printable(last_of(text, text.bytes < 8 ? text.bytes : 8, EACH('!')));
	for (uint32_t i = 0; i + 8 < text.bytes; i += 8)
		good &= printable(eight_at(text.at + i));
	return good == EACH(0x80);
}

/* True if a name is one of several in lower case: for each of them its length, then its octets, in words. */
int is_one_of(Text name, const uint64_t *names, uint64_t words) {
	for (uint64_t i = 0; i < words; i += 1 + (names[i] + 7) / 8) {
		const uint8_t *other = (const uint8_t *)(names + i + 1);
		uint32_t same = names[i] != name.bytes ? UINT32_MAX : memcmp(name.at, other, name.bytes) ? 0 : name.bytes;
		while (same < name.bytes && (name.at[same] >= 'A' && name.at[same] <= 'Z' ? name.at[same] | 0x20 : name.at[same]) == other[same])
			same++;
		if (same == name.bytes)
			return 1;
	}
	return 0;
}

/* True for names that `is_one_of` can read. */
int are_names(const uint64_t *names, uint64_t words) {
	uint64_t at = 0;
	while (at < words && names[at] <= NAME_BYTES_MAX && (names[at] + 7) / 8 < words - at)
		at += 1 + (names[at] + 7) / 8;
	return at == words;
}

static int is_number(Text text, uint32_t least, uint32_t most) { return text.bytes == 4 && word_at(text.at) >= least && word_at(text.at) <= most; }

typedef struct { uint32_t once, again; } Seen;	/* AVPs that have come, and those that have come again */

static inline void see(Seen *seen, uint32_t what) { seen->again |= seen->once & what, seen->once |= what; }

static int read_group(const Terms *terms, const Dictionary *dictionary, Text group, unsigned depth);

/* Read the AVPs of one level. Returns how many there are, those inside of groups included; -1 if they are not what the grammar wants. Each
 * level gets a function of its own. */
static inline __attribute__((always_inline)) int read_level(const Terms *terms, const Dictionary *dictionary, enum Level level, Text in, unsigned depth, Ecr *ecr, Aside *aside, Seen *seen) {
	uint32_t step;
	int bad = 0, avps = 0, inside;
	if (depth > terms->depth_max)
		return -1;
	for (const uint8_t *at = in.at, *end = at + in.bytes; at < end; at += step, avps++) {
		Avp avp;
		if (!(step = read_avp(at, end, &avp)))
			return -1;
		const Text data = avp.data;
		if (level == AT_TOP)
			switch (avp.key) {
			case SESSION_ID: ecr->session = data, see(seen, SESSION); continue;
			case ORIGIN_HOST: ecr->host = data, see(seen, HOST); continue;
			case ORIGIN_REALM: ecr->realm = data, see(seen, REALM); continue;
			case USER_NAME: ecr->imsi = data, see(seen, USER); continue;
			case OF_3GPP(MSISDN): ecr->msisdn = ecr->msisdn.at ? ecr->msisdn : data; continue;	/* the first one counts */
			case AUTH_SESSION_STATE: see(seen, STATE), bad |= !is_number(data, 0, 1); continue;
			case DESTINATION_HOST: aside->to_host = data, see(seen, TO_HOST); continue;
			case DESTINATION_REALM: aside->to_realm = data, see(seen, TO_REALM); continue;
			case OF_3GPP(TERMINAL_INFORMATION): aside->terminal = data, see(seen, TERMINAL); continue;
			case VENDOR_SPECIFIC_APPLICATION_ID: aside->application = data, see(seen, APPLICATION_ID); continue;
			case AUTH_APPLICATION_ID: see(seen, AUTH), bad |= !is_number(data, APPLICATION, APPLICATION); continue;
			case ACCT_APPLICATION_ID: see(seen, ACCT), bad |= !is_number(data, APPLICATION, APPLICATION); continue;
			case ROUTE_RECORD: bad |= !is_name(data); continue;
			case PROXY_INFO: ecr->has_proxies = 1; continue;	/* its inside is its proxy's (RFC 6733 6.7.2) */
			case DRMP: return -1;	/* a priority, which limits go by (RFC 7944) */
			}
		else if (level == IN_TERMINAL_INFORMATION)
			switch (avp.key) {
			case OF_3GPP(IMEI): ecr->imei = data, see(seen, DEVICE_ID); continue;
			case OF_3GPP(SOFTWARE_VERSION): ecr->version = data, see(seen, DEVICE_VERSION); continue;
			case OF_3GPP(MEID): see(seen, OTHER_ID); continue;	/* not needed beside a valid IMEI */
			}
		else if (level == IN_APPLICATION_ID)	/* a vendor and one application id, that of the header (RFC 6733 6.8, 6.11), and nothing else */
			switch (avp.key) {
			case VENDOR_ID: see(seen, VENDOR), bad |= !is_number(data, 0, UINT32_MAX); continue;
			case AUTH_APPLICATION_ID: case ACCT_APPLICATION_ID: see(seen, ID), bad |= !is_number(data, APPLICATION, APPLICATION); continue;
			default: return -1;
			}
		/* What the grammar does not name here. With the M bit it has to be known, unless nothing is known of the level (RFC 6733 7.1.5, 5001). */
		uint64_t place = place_of(dictionary, avp.key);
		if (place < dictionary->count && dictionary->are_groups[place])
			inside = avp.key == PROXY_INFO ? 0 : read_group(terms, dictionary, data, depth + 1), avps += inside, bad |= inside < 0;
		else
			bad |= level != IN_OTHER && avp.flags & M_FLAG && !terms->unknown_m && place == dictionary->count;
	}
	return bad ? -1 : avps;
}

static int read_group(const Terms *terms, const Dictionary *dictionary, Text group, unsigned depth) { return read_level(terms, dictionary, IN_OTHER, group, depth, NULL, NULL, NULL); }

/* The number of eight digits, the first one in the lowest byte. */
static uint64_t number_of(uint64_t eight, int *good) {
	const uint64_t high = 0xF0F0F0F0F0F0F0F0ull, zeros = 0x3030303030303030ull;
	*good &= !(((eight & high) ^ zeros) | (((eight + 0x0606060606060606ull) & high) ^ zeros));
	eight = (eight & 0x0F0F0F0F0F0F0F0Full) * 2561 >> 8;
	eight = (eight & 0x00FF00FF00FF00FFull) * 6553601 >> 16;
	return (eight & 0x0000FFFF0000FFFFull) * 42949672960001ull >> 32;
}

static inline __attribute__((always_inline)) int are_digits(Text text, uint64_t *number) {
	static const uint64_t powers[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};
	int good = 1;
	uint64_t value = 0;
	if (text.bytes > 8 && text.bytes <= 16)	/* as IMEI and IMSI have */
		value = number_of(eight_at(text.at), &good) * powers[text.bytes - 8], value += number_of(last_of(text, text.bytes - 8, EACH('0')), &good);
	else
		for (uint32_t i = 0; i < text.bytes; i++)
			good &= text.at[i] >= '0' && text.at[i] <= '9', value = value * 10 + text.at[i] - '0';
	*number = value;
	return good;
}

/* The digits of an MSISDN, written to a place for MSISDN_MAX of them (eir.interfaces.s13.service.msisdn_text); nothing if it has another form. */
Text msisdn_digits(Text octets, uint8_t *digits) {
	uint32_t bytes = octets.bytes, count = 2 * bytes - (bytes && octets.at[bytes - 1] >> 4 == 0xF);
	if (count < MSISDN_MIN || count > MSISDN_MAX)
		return (Text){0};
	for (uint32_t i = 0; i < count; i++)
		if ((digits[i] = (uint8_t)('0' + (octets.at[i / 2] >> 4 * (i & 1) & 0xF))) > '9')
			return (Text){0};
	return (Text){digits, count};
}

static uint32_t digits_at(const uint8_t *at, uint32_t most) {
	uint32_t count = 0;
	while (count < most && at[count] >= '0' && at[count] <= '9')
		count++;
	return count;
}

#define IS_AT(at, text) (!memcmp(at, text, sizeof text - 1))

/* The IMSI in a User-Name that is longer than one (eir.interfaces.s13.service.user_name_imsi): a root NAI or a private identity (TS 23.003 19.3.2, 13.3)
 * in the usual form. 0 if the User-Name has an @ and another form: the general path reads it. */
static int read_nai(Text *name) {
	enum { BEHIND_MNC = sizeof ".mcc001.3gppnetwork.org" - 1 };
	const uint8_t *at = name->at, *mcc = NULL;
	uint32_t digits = digits_at(at, name->bytes), left = name->bytes - digits;
	if (left) {
		if (!memchr(at, '@', name->bytes))
			return 1;
		const uint8_t *realm = at + digits + 1;
		uint32_t before = left > sizeof "@ims.mnc" && IS_AT(realm, "ims.mnc") ? 7 : left > sizeof "@nai.epc.mnc" && IS_AT(realm, "nai.epc.mnc") ? 11 : 0;
		uint32_t mnc = left - 1 - before - BEHIND_MNC;
		if (digits < IMSI_MIN || digits > IMSI_MAX + 1 || at[digits] != '@' || !before || left < 1 + before + BEHIND_MNC || mnc < 2 || mnc > 3 || digits_at(realm + before, 4) != mnc)
			return 0;
		mcc = realm + before + mnc + sizeof ".mcc" - 1;
		if (!IS_AT(mcc - 4, ".mcc") || digits_at(mcc, 4) != 3 || !IS_AT(mcc + 3, ".3gppnetwork.org"))
			return 0;
		name->bytes = digits;
	}
	if ((*at == '0' || *at == '6') && (digits == IMSI_MAX + 1 || (mcc && !memcmp(at + 1, mcc, 3))))
		name->at++, name->bytes--;
	return 1;
}

/* The numbers behind the texts (eir.checks.question). 0 if the IMEI has not 14 to 16 digits, the software version not two, or if the
 * User-Name is an NAI of another form than the usual one. */
static int read_numbers(Ecr *ecr) {
	uint64_t *fields = ecr->fields;
	Text imei = ecr->imei;
	if (imei.bytes < KEY_DIGITS || imei.bytes > KEY_DIGITS + 2 || !are_digits((Text){imei.at, KEY_DIGITS}, fields + DEVICE))
		return 0;
	if (!are_digits((Text){imei.at + KEY_DIGITS, imei.bytes - KEY_DIGITS}, fields + VERSION))
		return 0;
	if (!ecr->version.at && imei.bytes == KEY_DIGITS + 2)
		ecr->version = (Text){imei.at + KEY_DIGITS, 2};
	if (ecr->version.at ? ecr->version.bytes != 2 || !are_digits(ecr->version, fields + VERSION) : (fields[VERSION] = NOTHING, 0))
		return 0;
	if (ecr->imsi.bytes > IMSI_MAX && !read_nai(&ecr->imsi))
		return 0;
	if (!are_digits(ecr->imsi, &ecr->imsi_number))	/* a User-Name that is no number names no subscriber */
		ecr->imsi.bytes = 0;
	fields[SIM] = !ecr->imsi.bytes ? NOTHING : ecr->imsi.bytes == IMSI_MAX ? ecr->imsi_number : UNSURE;
	return 1;
}

/* Read the message at a place. Returns its length; 0 if it is for the general path. */
uint32_t read_ecr(const Terms *terms, const Dictionary *dictionary, const uint8_t *at, size_t left, Ecr *ecr) {
	uint32_t first = left < HEADER ? 0 : word_at(at), length = first & 0xFFFFFF;
	/* A request without the E bit; bits that are reserved are ignored (RFC 6733 3). */
	if (first >> 24 != 1 || length < HEADER || length > left || length & 3 || length > terms->bytes_max ||
	    (word_at(at + 4) & 0xA0FFFFFF) != (0x80000000u | COMMAND) || word_at(at + 8) != APPLICATION)
		return 0;
	ecr->message = at, ecr->length = length, ecr->has_proxies = 0, ecr->imsi = ecr->version = ecr->msisdn = (Text){0};
	Aside aside = {.application = {0}};
	Seen seen = {0};
	int avps = read_level(terms, dictionary, AT_TOP, (Text){at + HEADER, length - HEADER}, 0, ecr, &aside, &seen), inside = 0, ids = 0;
	if (avps < 0 || !(seen.once & TERMINAL) || (inside = read_level(terms, dictionary, IN_TERMINAL_INFORMATION, aside.terminal, 1, ecr, &aside, &seen)) < 0)
		return 0;
	if (seen.once & APPLICATION_ID && ((ids = read_level(terms, dictionary, IN_APPLICATION_ID, aside.application, 1, ecr, &aside, &seen)) < 0 || (~seen.once & APPLICATION_PARTS)))
		return 0;
	if (seen.again || (~seen.once & REQUIRED) || (unsigned)(avps + inside + ids) > terms->avps_max || !read_numbers(ecr) || !is_name(ecr->host) || !is_name(ecr->realm))
		return 0;
	/* RFC 6733 6.1.4, as eir.wire.diameter.serve.check_route. Names of ours are names. */
	if (!(seen.once & TO_HOST))
		return is_one_of(aside.to_realm, terms->words + terms->host_words, terms->realm_words) ? length : 0;
	int is_ours = terms->any_host ? is_name(aside.to_host) : is_one_of(aside.to_host, terms->words, terms->host_words);
	return is_ours && is_name(aside.to_realm) ? length : 0;
}
