"""From float parts to INT8 parts, judged by what they paint.

In this order, each step on files or values of the one before:

    prompts          what is painted: `read_prompts` or `default_prompts`, then `PromptSet.draw`
    recording_graph  the float transformer, which also tells what flows into its products
    record           paint the prompts; `TokenStatistics` of every product, resumable
    choose_factors   how far to smooth each product, by rounding the recorded tokens
    smooth           fold the factors into transformer and caption part; float results keep every bit
    trial_graph      the smoothed transformer in float and INT8 at once
    sensitivity      what each layer's rounding does to finished latents; the worst stay float
    loaded, gate     a bundle's parts, with some replaced; INT8 and float side by side on held-out prompts
    quantise         the products that remain, in INT8 for every engine
"""
