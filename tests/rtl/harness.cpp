// The testbench of testbench.sv for Verilator: the same files in, the same file out.
//
//   harness STIM EDGES FAULTS COUNT OUT
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "Vdut.h"
#include "verilated.h"

double sc_time_stamp() { return 0; }

// A word of hexadecimal digits, least significant 32 bits first.
static std::vector<std::vector<EData>> read_words(const char* name, size_t count, size_t size) {
    FILE* file = std::fopen(name, "r");
    if (!file) {
        std::fprintf(stderr, "harness: cannot read %s\n", name);
        std::exit(2);
    }
    std::vector<std::vector<EData>> words;
    std::vector<char> line(size * 8 + 8);
    while (words.size() < count && std::fgets(line.data(), static_cast<int>(line.size()), file)) {
        size_t length = std::strcspn(line.data(), "\r\n");
        std::vector<EData> word(size, 0);
        for (size_t i = 0; i < length; ++i) {
            const char digit = line[length - 1 - i];
            const EData value = digit <= '9' ? digit - '0' : digit - 'a' + 10;
            word.at(i / 8) |= value << (i % 8 * 4);
        }
        words.push_back(word);
    }
    std::fclose(file);
    if (words.size() != count) {
        std::fprintf(stderr, "harness: %zu words in %s, not %zu\n", words.size(), name, count);
        std::exit(2);
    }
    return words;
}

template <std::size_t N>
static void write_word(FILE* file, const VlWide<N>& word) {
    for (size_t i = N; i-- > 0;) std::fprintf(file, "%08x", word[i]);
    std::fputc('\n', file);
}

template <std::size_t N>
static void set(VlWide<N>& port, const std::vector<EData>& word) {
    for (size_t i = 0; i < N; ++i) port[i] = word[i];
}

template <std::size_t N>
static constexpr size_t size_of(const VlWide<N>&) {
    return N;
}

int main(int argc, char** argv) {
    if (argc != 6) {
        std::fprintf(stderr, "usage: harness STIM EDGES FAULTS COUNT OUT\n");
        return 2;
    }
    const std::unique_ptr<Vdut> dut(new Vdut);
    const size_t edges = std::strtoul(argv[2], nullptr, 10);
    const auto stimuli = read_words(argv[1], edges, size_of(dut->stim));
    const auto faults = read_words(argv[3], std::strtoul(argv[4], nullptr, 10), 10);
    FILE* out = std::fopen(argv[5], "w");
    if (!out) {
        std::fprintf(stderr, "harness: cannot write %s\n", argv[5]);
        return 2;
    }
    dut->clk = 0;
    for (const auto& fault : faults) {
        set(dut->fault, fault);
        for (size_t edge = 0; edge < edges; ++edge) {
            set(dut->stim, stimuli[edge]);
            dut->rst = edge == 0;
            dut->t = static_cast<IData>(edge) - 1;
            dut->eval();
            dut->clk = 1;
            dut->eval();
            write_word(out, dut->dump);
            dut->clk = 0;
        }
        dut->eval();
        write_word(out, dut->result);
    }
    dut->final();
    return std::fclose(out) ? 2 : 0;
}
