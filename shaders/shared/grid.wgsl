// Linear number of a workgroup: grids are folded over x and y, since an axis holds 65,535.
fn linear_workgroup(id: vec3<u32>, grid: vec3<u32>) -> u32 {
    return id.x + id.y * grid.x;
}
