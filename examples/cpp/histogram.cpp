// A region as an object that lets go by itself, and eight threads that count into it.
//
//     ./histogram /mnt/histogram
//
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <fcntl.h>
#include <iostream>
#include <msharefs.h>
#include <string>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <vector>

namespace msharefs {

class Region {
public:
    Region(const std::string &path, std::uint64_t size) : fd_(::open(path.c_str(), O_RDWR | O_CREAT, 0600))
    {
        if (fd_ < 0)
            fail(path);
        if (::ftruncate(fd_, static_cast<off_t>(size)) ||
            ::mshare_map(fd_, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, -1, 0))
            fail(path);
        memory_ = ::mshare_attach(fd_, 0, 0, nullptr, 0);
        if (memory_ == MAP_FAILED)
            fail(path);
    }
    Region(const Region &) = delete;
    Region &operator=(const Region &) = delete;
    ~Region()
    {
        ::mshare_detach(memory_);
        ::close(fd_);
    }

    template <typename T> T *as() const { return static_cast<T *>(memory_); }

    std::uint64_t page_table_bytes() const
    {
        struct mshare_stat found;
        if (::mshare_stat(fd_, &found, sizeof found))
            fail("stat");
        return found.page_table_bytes;
    }

private:
    [[noreturn]] static void fail(const std::string &what)
    {
        throw std::system_error(errno, std::generic_category(), what);
    }

    int fd_;
    void *memory_ = nullptr;
};

} // namespace msharefs

using Histogram = std::array<std::atomic<std::uint64_t>, 64>;

int main(int, char **argv)
try {
    msharefs::Region region(argv[1], 2 << 20);
    auto *histogram = region.as<Histogram>();
    std::vector<std::thread> threads;

    for (unsigned each = 0; each < 8; each++)
        threads.emplace_back([=] {
            for (unsigned number = 0; number < 1000; number++)
                (*histogram)[(number + each) % histogram->size()]++;
        });
    for (auto &thread : threads)
        thread.join();

    std::uint64_t sum = 0;
    for (const auto &count : *histogram)
        sum += count;
    std::cout << sum << " counted, " << region.page_table_bytes() << " bytes of page tables\n";
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}
