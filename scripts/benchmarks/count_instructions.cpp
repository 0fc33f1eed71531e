// A plugin of QEMU: writes the number of instructions that a program executes to the file given as out=FILE.

#include <cstdint>
#include <cstdio>
#include <string>

extern "C" {  // from qemu-plugin.h, which distributions do not ship
struct qemu_plugin_tb;
typedef std::uint64_t qemu_plugin_id_t;
std::size_t qemu_plugin_tb_n_insns(const qemu_plugin_tb*);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_inline(qemu_plugin_tb*, int operation, void* to, std::uint64_t value);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void*), void*);

extern int qemu_plugin_version;
int qemu_plugin_version = 1;
}

namespace {

std::uint64_t count = 0;
std::string out;

void translated(qemu_plugin_id_t, qemu_plugin_tb* block) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, 0 /* add */, &count, qemu_plugin_tb_n_insns(block));
}

void ended(qemu_plugin_id_t, void*) {
    if (std::FILE* file = std::fopen(out.c_str(), "w")) {
        std::fprintf(file, "%llu\n", static_cast<unsigned long long>(count));
        std::fclose(file);
    }
}

}  // namespace

extern "C" int qemu_plugin_install(qemu_plugin_id_t id, const void*, int count, char** arguments) {
    for (int i = 0; i < count; ++i)
        if (std::string(arguments[i]).rfind("out=", 0) == 0) out = arguments[i] + 4;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, nullptr);
    return 0;
}
