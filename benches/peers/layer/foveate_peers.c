/* A Vulkan layer for peers that run on Dawn (onnxruntime's WebGPU provider, tinygrad).

   1. Dawn refuses a device that cannot index arrays of images dynamically. Mesa's lavapipe reports
      that only since 23.0; Debian 12 has 22.3. The layer claims the two features, and takes those
      that the driver lacks out again before the device is created. Compute on storage buffers never
      needs them, so nothing that a peer runs is changed.
   2. With FOVEATE_PEERS_HIDE_SUBGROUPS set, it reports basic subgroup operations only, and Dawn then
      offers no subgroups: onnxruntime's kernels for subgroups compute wrong numbers where subgroups
      have 8 lanes. */

#include <stdlib.h>
#include <string.h>

#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

/* What lies below this layer. One instance at a time is enough for a benchmark's process. */
static struct {
    VkInstance instance;
    PFN_vkGetInstanceProcAddr get_instance_proc;
    PFN_vkGetDeviceProcAddr get_device_proc;
    PFN_vkGetPhysicalDeviceFeatures features;
    PFN_vkGetPhysicalDeviceFeatures2 features2;
    PFN_vkGetPhysicalDeviceProperties2 properties2;
} below;

/* ---- 1. image features ---- */

static void claim(VkPhysicalDeviceFeatures *features) {
    features->shaderSampledImageArrayDynamicIndexing = VK_TRUE;
    features->shaderStorageImageArrayDynamicIndexing = VK_TRUE;
}

static void keep_real(VkPhysicalDevice device, VkPhysicalDeviceFeatures *wanted) {
    VkPhysicalDeviceFeatures real;
    below.features(device, &real);
    wanted->shaderSampledImageArrayDynamicIndexing &= real.shaderSampledImageArrayDynamicIndexing;
    wanted->shaderStorageImageArrayDynamicIndexing &= real.shaderStorageImageArrayDynamicIndexing;
}

static VKAPI_ATTR void VKAPI_CALL get_features(VkPhysicalDevice device,
                                               VkPhysicalDeviceFeatures *features) {
    below.features(device, features);
    claim(features);
}

static VKAPI_ATTR void VKAPI_CALL get_features2(VkPhysicalDevice device,
                                                VkPhysicalDeviceFeatures2 *features) {
    below.features2(device, features);
    claim(&features->features);
}

/* ---- 2. subgroups ---- */

static VKAPI_ATTR void VKAPI_CALL get_properties2(VkPhysicalDevice device,
                                                  VkPhysicalDeviceProperties2 *properties) {
    below.properties2(device, properties);
    if (!getenv("FOVEATE_PEERS_HIDE_SUBGROUPS"))
        return;
    for (VkBaseOutStructure *next = properties->pNext; next; next = next->pNext) {
        if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES)
            ((VkPhysicalDeviceSubgroupProperties *)next)->supportedOperations =
                VK_SUBGROUP_FEATURE_BASIC_BIT;
        if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES)
            ((VkPhysicalDeviceVulkan11Properties *)next)->subgroupSupportedOperations =
                VK_SUBGROUP_FEATURE_BASIC_BIT;
    }
}

/* ---- the chain of layers ---- */

static PFN_vkVoidFunction ask_below(const char *name, const char *khr_name) {
    PFN_vkVoidFunction function = below.get_instance_proc(below.instance, name);
    return function ? function : below.get_instance_proc(below.instance, khr_name);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *allocator,
                                                      VkInstance *instance) {
    VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
    while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO &&
                     link->function == VK_LAYER_LINK_INFO))
        link = (VkLayerInstanceCreateInfo *)link->pNext;
    if (!link)
        return VK_ERROR_INITIALIZATION_FAILED;
    below.get_instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    PFN_vkCreateInstance create =
        (PFN_vkCreateInstance)below.get_instance_proc(NULL, "vkCreateInstance");
    VkResult result = create(info, allocator, instance);
    if (result != VK_SUCCESS)
        return result;
    below.instance = *instance;
    below.features = (PFN_vkGetPhysicalDeviceFeatures)below.get_instance_proc(
        *instance, "vkGetPhysicalDeviceFeatures");
    below.features2 = (PFN_vkGetPhysicalDeviceFeatures2)ask_below(
        "vkGetPhysicalDeviceFeatures2", "vkGetPhysicalDeviceFeatures2KHR");
    below.properties2 = (PFN_vkGetPhysicalDeviceProperties2)ask_below(
        "vkGetPhysicalDeviceProperties2", "vkGetPhysicalDeviceProperties2KHR");
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical,
                                                    const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *allocator,
                                                    VkDevice *device) {
    VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
    while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO &&
                     link->function == VK_LAYER_LINK_INFO))
        link = (VkLayerDeviceCreateInfo *)link->pNext;
    if (!link)
        return VK_ERROR_INITIALIZATION_FAILED;
    PFN_vkGetInstanceProcAddr get = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    below.get_device_proc = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;

    VkDeviceCreateInfo honest = *info;
    VkPhysicalDeviceFeatures enabled;
    if (info->pEnabledFeatures) {
        enabled = *info->pEnabledFeatures;
        keep_real(physical, &enabled);
        honest.pEnabledFeatures = &enabled;
    }
    for (VkBaseOutStructure *next = (VkBaseOutStructure *)info->pNext; next; next = next->pNext)
        if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2)
            keep_real(physical, &((VkPhysicalDeviceFeatures2 *)next)->features);
    PFN_vkCreateDevice create = (PFN_vkCreateDevice)get(below.instance, "vkCreateDevice");
    return create(physical, &honest, allocator, device);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_proc(VkDevice device, const char *name) {
    if (!strcmp(name, "vkGetDeviceProcAddr"))
        return (PFN_vkVoidFunction)get_device_proc;
    return below.get_device_proc ? below.get_device_proc(device, name) : NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_proc(VkInstance instance,
                                                                  const char *name) {
    static const struct {
        const char *name;
        PFN_vkVoidFunction function;
    } own[] = {
        {"vkGetInstanceProcAddr", (PFN_vkVoidFunction)get_instance_proc},
        {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)get_device_proc},
        {"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
        {"vkCreateDevice", (PFN_vkVoidFunction)create_device},
        {"vkGetPhysicalDeviceFeatures", (PFN_vkVoidFunction)get_features},
        {"vkGetPhysicalDeviceFeatures2", (PFN_vkVoidFunction)get_features2},
        {"vkGetPhysicalDeviceFeatures2KHR", (PFN_vkVoidFunction)get_features2},
        {"vkGetPhysicalDeviceProperties2", (PFN_vkVoidFunction)get_properties2},
        {"vkGetPhysicalDeviceProperties2KHR", (PFN_vkVoidFunction)get_properties2},
    };
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (!strcmp(name, own[i].name))
            return own[i].function;
    return below.get_instance_proc ? below.get_instance_proc(instance, name) : NULL;
}

__attribute__((visibility("default"))) VKAPI_ATTR VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *layer) {
    if (layer->loaderLayerInterfaceVersion > 2)
        layer->loaderLayerInterfaceVersion = 2;
    layer->pfnGetInstanceProcAddr = get_instance_proc;
    layer->pfnGetDeviceProcAddr = get_device_proc;
    layer->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
