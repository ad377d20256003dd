// The weight-stationary array and its accumulators behind the ports of dut_os.sv, but:
//
//   stim    bit 0 load, 1 accumulate, 2 first; [31:16] address; from 32 on left, top, bias
//   dump    from 0 on moving, resident, psum of every PE, row-major
//   result  the accumulators: word a of column c at index c*DEPTH + a
module dut #(
    parameter ROWS = 4,
    parameter COLS = 4,
    parameter OPERAND_BITS = 8,
    parameter PRODUCT_BITS = 16,
    parameter ACC_BITS = 32,
    parameter SATURATE = 0,
    parameter DEPTH = 16,  // words a column
    parameter STIM_BITS = 1024,
    parameter DUMP_BITS = 1024,
    parameter RESULT_BITS = 2176,
    parameter MUTANT = 0
) (
    input wire clk,
    input wire rst,
    input wire [31:0] t,
    input wire [STIM_BITS-1:0] stim,
    input wire [319:0] fault,
    output wire [DUMP_BITS-1:0] dump,
    output wire [RESULT_BITS-1:0] result
);
    localparam PES = ROWS * COLS;
    localparam LEFT = 32;
    localparam TOP = LEFT + ROWS * OPERAND_BITS;
    localparam BIAS = TOP + COLS * OPERAND_BITS;
    wire f_on;
    fault_timer timer (fault[3], fault[2], fault[95:64], fault[127:96], t, f_on);

    wire [PES*OPERAND_BITS-1:0] moving, resident;
    wire [PES*ACC_BITS-1:0] psum;
    ws_array #(
        .ROWS(ROWS), .COLS(COLS), .OPERAND_BITS(OPERAND_BITS), .PRODUCT_BITS(PRODUCT_BITS),
        .ACC_BITS(ACC_BITS), .SATURATE(SATURATE), .MUTANT(MUTANT)
    ) array (
        .clk(clk), .rst(rst), .load(stim[0]),
        .left(stim[LEFT+:ROWS*OPERAND_BITS]), .top(stim[TOP+:COLS*OPERAND_BITS]),
        .f_on(f_on), .f_site(fault[1:0]), .f_row(fault[31:16]), .f_col(fault[47:32]),
        .f_and(fault[191:128]), .f_or(fault[255:192]), .f_xor(fault[319:256]),
        .moving(moving), .resident(resident), .psum(psum)
    );
    accumulators #(
        .COLS(COLS), .DEPTH(DEPTH), .ACC_BITS(ACC_BITS), .SATURATE(SATURATE)
    ) memory (
        .clk(clk), .rst(rst), .en(stim[1]), .first(stim[2]), .addr(stim[31:16]),
        .bias(stim[BIAS+:COLS*ACC_BITS]), .psum(psum[(PES-COLS)*ACC_BITS+:COLS*ACC_BITS]),
        .words(result[COLS*DEPTH*ACC_BITS-1:0])
    );
    assign result[RESULT_BITS-1:COLS*DEPTH*ACC_BITS] = 0;
    assign dump = {
        {DUMP_BITS - PES * (2 * OPERAND_BITS + ACC_BITS){1'b0}}, psum, resident, moving
    };
endmodule
