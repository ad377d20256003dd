// Injections a second of a compiled loop around the Verilated output-stationary array: reset,
// run the tile, flip one register on the way, compare the result. No fault port is in the
// array: a flip is written into the register itself, which costs the other cycles nothing.
//
//   speed TILE FAULTS ROUNDS OUT
//
// TILE    rows cols k, then a (rows x k) and b (k x cols), row-major, as decimal numbers
// FAULTS  count, then by fault: register (0 ifmap, 1 filter, 2 psum), row, col, bit, cycle
// OUT     by fault one line: how many outputs changed, and the sum over outputs of
//         (row * cols + col + 1) * (faulty - golden)
// Standard output: by round the seconds that all faults took.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "Vos_array.h"
#include "verilated.h"
#include "verilated_syms.h"

double sc_time_stamp() { return 0; }

struct Fault {
    int site, row, col, bit, cycle;
};

static int rows, cols, k;
static std::vector<int> a, b;

// The low 8 bits of a signed code into byte `at` of a port.
template <class Port>
static void put(Port& port, int at, int code) {
    const EData shift = at % 4 * 8;
    port[at / 4] = (port[at / 4] & ~(EData(0xff) << shift)) | (EData(code & 0xff) << shift);
}

// What edge t latches at the left and upper edge of the array: one cycle ahead.
static void drive(Vos_array& array, int t) {
    for (int i = 0; i < rows; ++i) {
        const int slot = t + 1 - i;
        put(array.left, i, slot >= 0 && slot < k ? a[i * k + slot] : 0);
    }
    for (int j = 0; j < cols; ++j) {
        const int slot = t + 1 - j;
        put(array.top, j, slot >= 0 && slot < k ? b[slot * cols + j] : 0);
    }
}

int main(int argc, char** argv) {
    if (argc != 5) {
        std::cerr << "usage: speed TILE FAULTS ROUNDS OUT\n";
        return 2;
    }
    std::ifstream tile(argv[1]), list(argv[2]);
    tile >> rows >> cols >> k;
    a.resize(rows * k);
    b.resize(k * cols);
    for (int& code : a) tile >> code;
    for (int& code : b) tile >> code;
    size_t count = 0;
    list >> count;
    std::vector<Fault> faults(count);
    for (Fault& f : faults) list >> f.site >> f.row >> f.col >> f.bit >> f.cycle;
    if (!tile || !list) {
        std::cerr << "speed: TILE or FAULTS ends early\n";
        return 2;
    }

    const std::unique_ptr<VerilatedContext> context(new VerilatedContext);
    const std::unique_ptr<Vos_array> array(new Vos_array(context.get(), "TOP"));
    array->eval();
    const char* const names[] = {"ifmap", "filter", "psum"};
    std::vector<void*> registers(3 * rows * cols);
    for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < cols; ++j) {
            const std::string scope = "TOP.os_array.row[" + std::to_string(i) + "].col["
                + std::to_string(j) + "].pe";
            const VerilatedScope* const found = context->scopeFind(scope.c_str());
            for (int site = 0; site < 3; ++site) {
                VerilatedVar* const var = found ? found->varFind(names[site]) : nullptr;
                if (!var) {
                    std::cerr << "speed: no register " << names[site] << " in " << scope << "\n";
                    return 2;
                }
                registers[(site * rows + i) * cols + j] = var->datap();
            }
        }
    }

    // Ports by cycle, ready to be copied: the loop below measures the array, not the driver.
    const int length = k + rows + cols - 2;
    std::vector<std::decay_t<decltype(array->left)>> left(length + 1);
    std::vector<std::decay_t<decltype(array->top)>> top(length + 1);
    for (int t = -1; t < length; ++t) {
        drive(*array, t);
        left[t + 1] = array->left;
        top[t + 1] = array->top;
    }
    std::vector<int32_t> golden(rows * cols);
    std::vector<long long> changed(count), weighted(count);

    const auto sum_of = [&](int pe) {
        return *static_cast<const int32_t*>(registers[2 * rows * cols + pe]);
    };
    const auto run = [&](const Fault* fault) {
        for (int t = -1; t < length; ++t) {
            array->rst = t < 0;
            array->en = t >= 0 && t < k;
            array->first = t == 0;
            array->left = left[t + 1];
            array->top = top[t + 1];
            array->clk = 1;
            array->eval();
            array->clk = 0;
            if (fault && t == fault->cycle) {
                void* const at = registers[(fault->site * rows + fault->row) * cols + fault->col];
                if (fault->site == 2)
                    *static_cast<IData*>(at) ^= IData(1) << fault->bit;
                else
                    *static_cast<CData*>(at) ^= CData(1 << fault->bit);
            }
            array->eval();
        }
    };
    run(nullptr);
    for (int i = 0; i < rows * cols; ++i) golden[i] = sum_of(i);
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < cols; ++j) {
            int64_t sum = 0;
            for (int u = 0; u < k; ++u) sum += a[i * k + u] * b[u * cols + j];
            if (golden[i * cols + j] != static_cast<int32_t>(sum)) {
                std::cerr << "speed: the fault-free result is wrong\n";
                return 1;
            }
        }

    const int rounds = std::stoi(argv[3]);
    for (int round = 0; round < rounds; ++round) {
        const auto start = std::chrono::steady_clock::now();
        for (size_t f = 0; f < count; ++f) {
            run(&faults[f]);
            changed[f] = weighted[f] = 0;
            for (int i = 0; i < rows * cols; ++i) {
                const long long delta = int64_t(sum_of(i)) - golden[i];
                changed[f] += delta != 0;
                weighted[f] += (i + 1) * delta;
            }
        }
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        std::printf("%.9f\n", taken.count());
    }
    std::ofstream out(argv[4]);
    for (size_t f = 0; f < count; ++f) out << changed[f] << " " << weighted[f] << "\n";
    return out.flush() ? 0 : 2;
}
