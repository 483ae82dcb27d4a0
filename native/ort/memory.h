/* Where codes lie. A product of one row reads all of them once, which is up to a fifth faster from huge pages
 * than from small ones (docs/native.md). */
#ifndef HYBRIDKIT_ORT_MEMORY_H
#define HYBRIDKIT_ORT_MEMORY_H

#include <cstddef>
#include <cstdint>
#include <memory>

namespace hybridkit::ort {

/* Memory for codes, on huge pages where the system has them, aligned to 64 bytes. Throws std::bad_alloc. */
std::shared_ptr<uint8_t> allocate_codes(size_t bytes);

/* The runtime's codes on huge pages, in no more memory than before where that can be had: pages of a mapped
 * file are copied and given up, other memory changes its pages in place. Null where the codes are best read
 * where they are. */
std::shared_ptr<const uint8_t> settle(const uint8_t* codes, size_t bytes);

/* Whether codes are the same as ours; gives up their pages, too. */
bool equal(const uint8_t* ours, const uint8_t* codes, size_t bytes);

/* Gives up the pages of a mapped file, which come back when they are read. Leaves other memory alone. */
void give_up(const uint8_t* codes, size_t bytes);

}  // namespace hybridkit::ort
#endif
