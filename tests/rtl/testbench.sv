// Runs the stimulus once for each fault and writes what every register held after every edge.
//
//   +stim=FILE +edges=N       N words of hexadecimal, one an edge, the edge under reset first
//   +faults=FILE +count=N     N words, one a run
//   +out=FILE                 for each run: `dump` after each edge, then `result`
//   +vcd=FILE                 waveform of all runs, for a viewer
module testbench;
    parameter ROWS = 4;
    parameter COLS = 4;
    parameter OPERAND_BITS = 8;
    parameter PRODUCT_BITS = 16;
    parameter ACC_BITS = 32;
    parameter SATURATE = 0;
    parameter DEPTH = 16;
    parameter STIM_BITS = 1024;
    parameter DUMP_BITS = 1024;
    parameter RESULT_BITS = 2176;
    parameter MUTANT = 0;
    parameter EDGES = 4096;
    parameter RUNS = 4096;

    reg clk, rst;
    reg [31:0] t;
    reg [STIM_BITS-1:0] stim;
    reg [319:0] fault;
    wire [DUMP_BITS-1:0] dump;
    wire [RESULT_BITS-1:0] result;
    dut #(
        .ROWS(ROWS), .COLS(COLS), .OPERAND_BITS(OPERAND_BITS), .PRODUCT_BITS(PRODUCT_BITS),
        .ACC_BITS(ACC_BITS), .SATURATE(SATURATE), .DEPTH(DEPTH), .STIM_BITS(STIM_BITS),
        .DUMP_BITS(DUMP_BITS), .RESULT_BITS(RESULT_BITS), .MUTANT(MUTANT)
    ) dut (
        .clk(clk), .rst(rst), .t(t), .stim(stim), .fault(fault), .dump(dump), .result(result)
    );

    reg [STIM_BITS-1:0] stimuli[0:EDGES-1];
    reg [319:0] faults[0:RUNS-1];
    reg [8*1024-1:0] name;
    integer edges, count, edge_, run, out;

    initial begin
        if (!$value$plusargs("edges=%d", edges) || !$value$plusargs("count=%d", count)
            || edges > EDGES || count > RUNS) begin
            $display("testbench: +edges=1..%0d and +count=1..%0d are needed", EDGES, RUNS);
            $finish_and_return(2);
        end
        if (!$value$plusargs("stim=%s", name)) $finish_and_return(2);
        $readmemh(name, stimuli, 0, edges - 1);
        if (!$value$plusargs("faults=%s", name)) $finish_and_return(2);
        $readmemh(name, faults, 0, count - 1);
        if (!$value$plusargs("out=%s", name)) $finish_and_return(2);
        out = $fopen(name, "w");
        if ($value$plusargs("vcd=%s", name)) begin
            $dumpfile(name);
            $dumpvars(0, dut);
        end
        clk = 0;
        for (run = 0; run < count; run = run + 1) begin
            fault = faults[run];
            for (edge_ = 0; edge_ < edges; edge_ = edge_ + 1) begin
                stim = stimuli[edge_];
                rst = edge_ == 0;
                t = edge_ - 1;
                #5 clk = 1;
                #5 $fwrite(out, "%h\n", dump);
                clk = 0;
            end
            $fwrite(out, "%h\n", result);
        end
        $fclose(out);
        $finish_and_return(0);
    end
endmodule
