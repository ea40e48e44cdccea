// The shape of common/chat.cpp that lacks Gemma 4's thinking tags, cut down to what a patch has to tell apart:
// a neighbour with tags of its own before it, a call before the definition, a line that looks like the anchor after it.

static common_chat_params common_chat_params_init_neighbour(const common_chat_template & tmpl) {
    common_chat_params data;
    data.supports_thinking  = true;
    data.thinking_start_tag = "[THINK]";
    data.thinking_end_tag   = "[/THINK]";
    return data;
}

static common_chat_params common_chat_params_init_gemma4(const common_chat_template &    tmpl,
                                                         const autoparser::generation_params & inputs) {
    common_chat_params data;

    data.prompt            = render(tmpl, inputs);
    data.format            = COMMON_CHAT_FORMAT_PEG_GEMMA4;
    data.supports_thinking = true;

    data.preserved_tokens = {
        "<|channel>",
        "<channel|>",
    };

    if (inputs.add_generation_prompt) {
        data.prompt += "<|turn>model\n";
    }
    return data;
}

static common_chat_params choose(const common_chat_template & tmpl, const autoparser::generation_params & inputs) {
    common_chat_params data;
    data.supports_thinking = true;
    if (is_gemma4(tmpl)) {
        return common_chat_params_init_gemma4(tmpl, inputs);
    }
    return data;
}
