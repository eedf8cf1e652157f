// Aligned memory that its owner frees.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_WIN32)
#include <malloc.h>
#endif

namespace mv {

constexpr size_t kHugePage = size_t{2} << 20;

// Memory, zeroed unless it will be written before it is read. Large blocks ask for huge pages: the shared network is
// walked through once a layer, and with small pages its translations alone would not fit the processor's tables.
template <typename T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t count, bool zeroed = true) {
        const size_t bytes = std::max<size_t>(count * sizeof(T), 64);
        const size_t align = bytes >= kHugePage ? kHugePage : 64;
        const size_t rounded = (bytes + align - 1) / align * align;
#if defined(_WIN32)
        data_ = static_cast<T*>(_aligned_malloc(rounded, align));
#else
        void* memory = nullptr;
        data_ = posix_memalign(&memory, align, rounded) == 0 ? static_cast<T*>(memory) : nullptr;
#endif
        if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        if (align == kHugePage) madvise(data_, rounded, MADV_HUGEPAGE);
#endif
        if (zeroed) std::memset(static_cast<void*>(data_), 0, rounded);
    }
    Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Buffer() {
#if defined(_WIN32)
        _aligned_free(data_);
#else
        std::free(data_);
#endif
    }
    T* get() const { return data_; }

   private:
    T* data_ = nullptr;
};

}  // namespace mv
