// The tensors that every attention schedule binds besides those of the scores. The kernel that imports
// this says how q, k, v and o are stored (`Stored`).

//@import attention_scores

@group(0) @binding(3) var<storage, read> v: array<Stored>; // [batch, kv_heads, kv_len, value_dim]
//@if PARTIAL
@group(0) @binding(4) var<storage, read_write> scratch: array<f32>; // [rows, splits, value_dim + 2]
//@else
@group(0) @binding(4) var<storage, read_write> o: array<Stored>; // [batch, q_heads, q_len, value_dim]
//@if LSE
@group(0) @binding(5) var<storage, read_write> lse: array<f32>; // [batch, q_heads, q_len]
//@endif
//@endif
