// Calls functions of a native library for a Python process on another processor (see emulated.py).
//
// A request on the standard input, of little-endian 64-bit words: the length of the function's name, the number of
// buffers and of arguments; the name; for each buffer its size and its bytes; for each argument its kind and its value.
// The answer on the standard output: what the function returned, and the bytes of all buffers.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace {

typedef std::uint64_t Word;
enum Kind : Word { INTEGER, REAL, BUFFER };
constexpr std::size_t MOST = 24;  // integers and addresses

template <std::size_t>
using Each = Word;

// Calling conventions pass integers and addresses as words, and reals in other registers, whatever their order. So one
// type of function stands for all; a function does not see the words that it does not take.
template <std::size_t... I>
Word call(void* function, const Word (&words)[MOST], float real, std::index_sequence<I...>) {
    return reinterpret_cast<Word (*)(Each<I>..., float)>(function)(words[I]..., real);
}

void read(void* to, std::size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(2);
}

struct Buffer {
    Word size;
    char* data;  // aligned as torch's memory
};

}  // namespace

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    for (Word head[3]; std::fread(head, sizeof(head), 1, stdin);) {
        std::string name(head[0], ' ');
        read(&name[0], head[0]);
        std::vector<Buffer> buffers(head[1]);
        for (Buffer& buffer : buffers) {
            read(&buffer.size, sizeof(Word));
            buffer.data = static_cast<char*>(std::aligned_alloc(64, buffer.size / 64 * 64 + 64));
            read(buffer.data, buffer.size);
        }
        Word words[MOST] = {};
        float real = 0;
        for (Word i = 0, word = 0; i < head[2]; ++i) {
            Word argument[2];
            read(argument, sizeof(argument));
            if (argument[0] == REAL) std::memcpy(&real, &argument[1], sizeof(real));
            else if (argument[0] == BUFFER) words[word++] = reinterpret_cast<Word>(buffers.at(argument[1]).data);
            else words[word++] = argument[1];
        }
        void* function = dlsym(library, name.c_str());
        if (!function) return 3;
        const Word result = call(function, words, real, std::make_index_sequence<MOST>());
        std::fwrite(&result, sizeof(result), 1, stdout);
        for (const Buffer& buffer : buffers) {
            std::fwrite(buffer.data, 1, buffer.size, stdout);
            std::free(buffer.data);
        }
        std::fflush(stdout);
    }
}
