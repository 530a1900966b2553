/* A policy, in words of 8 bytes (eir/checks/program.py): for each rule its verdict, how many words its conditions take, and for each of
 * these what it asks, how many words follow, and the words. The last word is the verdict where no rule holds. */

#include "_lane.h"

static int is_sound_condition(const Policy *policy, uint64_t asks, const uint64_t *said, uint64_t count) {
	switch (asks) {
	case IF_OTHER: return 1;
	case IF_LISTED: case IF_NOT_LISTED: return count == 1 && said[0] < policy->list_count;
	case IF_WITHIN: return count % 2 == 1 && said[0] < FIELDS;
	case IF_ORIGIN_HOST: case IF_ORIGIN_REALM: return are_names(said, count);
	default: return 0;
	}
}

int is_verdict(const Policy *policy, uint64_t word) { return (uint32_t)word < policy->verdict_count && word >> 32 < STATUSES; }

/* True for a program that `decide` can follow to its end. */
int is_sound(const Policy *policy) {
	const uint64_t *words = policy->words, last = policy->word_count - 1;
	uint64_t at = 0;
	if (!policy->word_count || !is_verdict(policy, words[last]))
		return 0;
	while (at < last) {
		if (last - at < 2 || words[at + 1] > last - at - 2 || (words[at] != ASK_INSTEAD && !is_verdict(policy, words[at])))
			return 0;
		uint64_t end = at + 2 + words[at + 1];
		for (at += 2; at < end; at += 2 + words[at + 1])
			if (end - at < 2 || words[at + 1] > end - at - 2 || !is_sound_condition(policy, words[at], words + at + 2, words[at + 1]))
				return 0;
	}
	return 1;
}

static int condition_holds(const Policy *policy, const Ecr *ecr, const uint8_t *found, uint64_t asks, const uint64_t *said, uint64_t count) {
	switch (asks) {
	case IF_LISTED: return found[said[0]];
	case IF_NOT_LISTED: return !policy->lists[said[0]].is_there ? NO : found[said[0]] == MAYBE ? MAYBE : !found[said[0]];
	case IF_ORIGIN_HOST: return is_one_of(ecr->host, said, count);
	case IF_ORIGIN_REALM: return is_one_of(ecr->realm, said, count);
	case IF_WITHIN:
		for (uint64_t i = 1, number = ecr->fields[said[0]]; i < count; i += 2)
			if (number == UNSURE || (number >= said[i] && number <= said[i + 1]))
				return number == UNSURE ? MAYBE : YES;
		return NO;
	default: return MAYBE;
	}
}

/* The verdict; ASK_INSTEAD if the general path has to say. `found`: for each list, whether it has the device or the SIM. */
uint64_t decide(const Policy *policy, const Ecr *ecr, const uint8_t *found) {
	const uint64_t *words = policy->words, end = policy->word_count - 1;
	for (uint64_t at = 0; at < end;) {
		uint64_t verdict = words[at], next = at + 2 + words[at + 1];
		int holds = YES;
		for (at += 2; at < next && holds != NO; at += 2 + words[at + 1]) {
			int this = condition_holds(policy, ecr, found, words[at], words + at + 2, words[at + 1]);
			holds = this == YES ? holds : this;
		}
		if (holds == MAYBE || (holds == YES && verdict == ASK_INSTEAD))
			return ASK_INSTEAD;
		if (holds == YES)
			return verdict;
		at = next;
	}
	return words[end];
}
