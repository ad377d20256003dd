// The output-stationary array behind ports that one testbench can drive whatever is inside.
//
//   stim    bit 0 en, 1 first, 2 take; [31:16] fold to take; from 32 on left, top, bias
//   fault   [1:0] site, 2 level, 3 present, [31:16] row, [47:32] col, [95:64] first,
//           [127:96] last, [191:128] and, [255:192] or, [319:256] xor mask
//   dump    from 0 on ifmap, filter, psum of every PE, row-major
//   result  psums of every PE at the end of each fold
module dut #(
    parameter ROWS = 4,
    parameter COLS = 4,
    parameter OPERAND_BITS = 8,
    parameter PRODUCT_BITS = 16,
    parameter ACC_BITS = 32,
    parameter SATURATE = 0,
    parameter DEPTH = 4,  // folds
    parameter STIM_BITS = 1024,
    parameter DUMP_BITS = 1024,
    parameter RESULT_BITS = 2048,
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

    wire [PES*OPERAND_BITS-1:0] ifmap, filter;
    wire [PES*ACC_BITS-1:0] psum;
    os_array #(
        .ROWS(ROWS), .COLS(COLS), .OPERAND_BITS(OPERAND_BITS), .PRODUCT_BITS(PRODUCT_BITS),
        .ACC_BITS(ACC_BITS), .SATURATE(SATURATE), .MUTANT(MUTANT)
    ) array (
        .clk(clk), .rst(rst), .en(stim[0] && !rst), .first(stim[1]),
        .left(stim[LEFT+:ROWS*OPERAND_BITS]), .top(stim[TOP+:COLS*OPERAND_BITS]),
        .bias(stim[BIAS+:PES*ACC_BITS]),
        .f_on(f_on), .f_site(fault[1:0]), .f_row(fault[31:16]), .f_col(fault[47:32]),
        .f_and(fault[191:128]), .f_or(fault[255:192]), .f_xor(fault[319:256]),
        .ifmap(ifmap), .filter(filter), .psum(psum)
    );

    genvar f;
    generate
        for (f = 0; f < DEPTH; f = f + 1) begin : fold
            reg [PES*ACC_BITS-1:0] sums;
            always @(posedge clk)
                if (rst) sums <= 0;
                else if (stim[2] && stim[31:16] == f) sums <= psum;
            assign result[f*PES*ACC_BITS+:PES*ACC_BITS] = sums;
        end
    endgenerate
    assign result[RESULT_BITS-1:DEPTH*PES*ACC_BITS] = 0;
    assign dump = {{DUMP_BITS - PES * (2 * OPERAND_BITS + ACC_BITS){1'b0}}, psum, filter, ifmap};
endmodule
