"""Render the recipe of the conda package for each kind of system, as conda-forge's tools do, or fail."""

from rattler_build import PlatformConfig, RenderConfig, Stage0Recipe, VariantConfig

variants = VariantConfig({"python": ["3.11.*"], "c_compiler": ["clang"], "c_stdlib": ["sysroot"]})
for system in ("linux-64", "osx-arm64", "win-64"):
    platform = PlatformConfig(target_platform=system, build_platform="linux-64", host_platform=system)
    if not Stage0Recipe.from_file("recipe/recipe.yaml").render(variants, RenderConfig(platform)):
        raise SystemExit(f"recipe/recipe.yaml gives no package for {system}")
