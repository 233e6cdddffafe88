"""Products and prices: flat recurring, metered and tiered, with amounts in other currencies."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from infra.local.stripe_server.account import (
    Account,
    Json,
    created_within,
    merge_metadata,
    page,
    register_kind,
)
from infra.local.stripe_server.errors import invalid_request
from infra.local.stripe_server.routes import Params, route

_MAX_DECIMALS = 12


register_kind("prod", "product")
register_kind("price", "price")


@route("POST", "/v1/products", "ProductCreateParams")
def create_product(account: Account, params: Params) -> Json:
    """POST /v1/products."""
    now = account.now()
    product_id = params.get("id") or account.new_id("prod")
    if product_id in account.store("prod"):
        raise invalid_request("Product already exists.", code="resource_already_exists")
    product: Json = {
        "id": product_id,
        "object": "product",
        "active": params.get("active", True),
        "created": now,
        "default_price": None,
        "description": params.get("description"),
        "images": params.get("images") or [],
        "livemode": False,
        "marketing_features": params.get("marketing_features") or [],
        "metadata": merge_metadata({}, params.get("metadata")),
        "name": params["name"],
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": params.get("statement_descriptor"),
        "tax_code": params.get("tax_code"),
        "type": params.get("type") or "service",
        "unit_label": params.get("unit_label"),
        "updated": now,
        "url": params.get("url"),
    }
    account.add("prod", product)
    account.emit("product.created", "prod", product)
    return account.render("prod", product)


@route("GET", "/v1/products", "ProductListParams")
def list_products(account: Account, params: Params) -> Json:
    """GET /v1/products."""
    active, ids = params.get("active"), params.get("ids")
    found = [
        product
        for product in account.store("prod").values()
        if (active is None or product["active"] == active)
        and (ids is None or product["id"] in ids)
        and created_within(product, params.get("created"))
    ]
    return page(account, "prod", found, params, "/v1/products")


@route("GET", "/v1/products/{}", "ProductRetrieveParams")
def retrieve_product(account: Account, _params: Params, product_id: str) -> Json:
    """GET /v1/products/:id."""
    return account.render("prod", account.get("prod", product_id))


@route("POST", "/v1/products/{}", "ProductUpdateParams")
def update_product(account: Account, params: Params, product_id: str) -> Json:
    """POST /v1/products/:id."""
    product = account.get("prod", product_id)
    before = account.render("prod", product)
    for key in ("active", "description", "name", "statement_descriptor", "unit_label", "url"):
        if key in params:
            product[key] = params[key] if params[key] != "" else None
    if "default_price" in params:
        product["default_price"] = account.get(
            "price", params["default_price"], param="default_price"
        )["id"]
    if "metadata" in params:
        product["metadata"] = merge_metadata(product["metadata"], params["metadata"])
    product["updated"] = account.now()
    account.emit_update("product.updated", "prod", product, before)
    return account.render("prod", product)


@route("DELETE", "/v1/products/{}", "ProductDeleteParams")
def delete_product(account: Account, _params: Params, product_id: str) -> Json:
    """DELETE /v1/products/:id: only one that no price names."""
    product = account.get("prod", product_id)
    if any(price["product"] == product_id for price in account.store("price").values()):
        raise invalid_request(
            "This product cannot be deleted because it has one or more user-created prices."
        )
    account.emit("product.deleted", "prod", product)
    product["_gone"] = True
    return {"id": product_id, "object": "product", "deleted": True}


def _plain(number: Decimal) -> str:
    text = format(number.normalize(), "f")
    return "0" if text == "-0" else text


def _check_decimals(number: Decimal, param: str) -> Decimal:
    exponent = number.normalize().as_tuple().exponent
    if isinstance(exponent, int) and -exponent > _MAX_DECIMALS:
        raise invalid_request(
            f"Invalid decimal: {number}; must contain at maximum 12 decimal places.",
            code="parameter_invalid_decimal",
            param=param,
        )
    if number < 0:
        raise invalid_request("Invalid non-negative decimal", param=param)
    return number


def read_amount(params: Params, name: str, where: str = "") -> tuple[int | None, str | None]:
    """`unit_amount` or `unit_amount_decimal`, as (whole or None, decimal text or None)."""
    whole, exact = params.get(name), params.get(f"{name}_decimal")
    if whole is not None and exact is not None:
        raise invalid_request(
            f"You may only specify one of these parameters: {where}{name}, {where}{name}_decimal.",
            param=f"{where}{name}",
        )
    if exact is None:
        if whole is not None and whole < 0:
            raise invalid_request("Invalid non-negative integer", param=f"{where}{name}")
        return whole, None if whole is None else str(whole)
    number = _check_decimals(exact, f"{where}{name}_decimal")
    return (int(number) if number == int(number) else None), _plain(number)


def _read_tiers(rows: Any) -> list[Json]:
    tiers: list[Json] = []
    below = 0
    for index, row in enumerate(rows or []):
        where = f"tiers[{index}]"
        up_to = row.get("up_to")
        last = index == len(rows) - 1
        if last != (up_to == "inf"):
            raise invalid_request(
                "The last tier must have `up_to` set to `inf`."
                if last
                else "Only the last tier may have `up_to` set to `inf`.",
                param=f"{where}[up_to]",
            )
        if not last:
            if not isinstance(up_to, int) or up_to <= below:
                raise invalid_request(
                    "Tiers must be in ascending order of `up_to`.", param=f"{where}[up_to]"
                )
            below = up_to
        unit, unit_decimal = read_amount(row, "unit_amount", f"{where}.")
        flat, flat_decimal = read_amount(row, "flat_amount", f"{where}.")
        if unit_decimal is None and flat_decimal is None:
            raise invalid_request(
                "Each tier needs one of unit_amount, unit_amount_decimal, flat_amount, "
                "flat_amount_decimal.",
                param=where,
            )
        tiers.append(
            {
                "flat_amount": flat,
                "flat_amount_decimal": flat_decimal,
                "unit_amount": unit,
                "unit_amount_decimal": unit_decimal,
                "up_to": None if last else up_to,
            }
        )
    return tiers


def _read_recurring(account: Account, given: Any) -> Json | None:
    if given is None:
        return None
    usage_type = given.get("usage_type") or "licensed"
    meter = given.get("meter")
    if meter is not None:
        stored = account.get("mtr", meter, param="recurring[meter]")
        if stored["status"] != "active":
            raise invalid_request("The meter is inactive.", param="recurring[meter]")
        if usage_type != "metered":
            raise invalid_request(
                "`recurring[meter]` can only be set when `recurring[usage_type]` is `metered`.",
                param="recurring[meter]",
            )
    elif usage_type == "metered":
        raise invalid_request(
            "Metered prices must be backed by a meter: set `recurring[meter]`. Legacy usage "
            "records are no longer supported.",
            param="recurring[meter]",
        )
    return {
        "interval": given["interval"],
        "interval_count": given.get("interval_count", 1),
        "meter": meter,
        "trial_period_days": given.get("trial_period_days"),
        "usage_type": usage_type,
    }


def _read_currency_options(params: Params, main: Json, billing_scheme: str) -> dict[str, Json]:
    options: dict[str, Json] = {main.pop("currency"): main}
    for currency, option in (params.get("currency_options") or {}).items():
        unit, unit_decimal = read_amount(option, "unit_amount", f"currency_options.{currency}.")
        tiers = _read_tiers(option.get("tiers"))
        if (billing_scheme == "tiered") != bool(tiers):
            raise invalid_request(
                "`currency_options` must have tiers exactly when the price has them.",
                param=f"currency_options[{currency}]",
            )
        options[currency] = {
            "custom_unit_amount": None,
            "tax_behavior": option.get("tax_behavior") or "unspecified",
            "tiers": tiers or None,
            "unit_amount": unit,
            "unit_amount_decimal": unit_decimal,
        }
    return options


def _take_lookup_key(account: Account, params: Params) -> str | None:
    lookup_key: str | None = params.get("lookup_key") or None
    if lookup_key is None:
        return None
    for other in account.store("price").values():
        if other["lookup_key"] == lookup_key:
            if not params.get("transfer_lookup_key"):
                raise invalid_request(
                    f"A price ({other['id']}) already uses that lookup key.", param="lookup_key"
                )
            other["lookup_key"] = None
    return lookup_key


@route("POST", "/v1/prices", "PriceCreateParams")
def create_price(account: Account, params: Params) -> Json:
    """POST /v1/prices."""
    billing_scheme = params.get("billing_scheme") or "per_unit"
    unit, unit_decimal = read_amount(params, "unit_amount")
    tiers = _read_tiers(params.get("tiers"))
    if billing_scheme == "tiered":
        if not tiers or params.get("tiers_mode") is None:
            raise invalid_request(
                "`tiers` and `tiers_mode` are required when `billing_scheme` is `tiered`.",
                param="tiers",
            )
        if unit_decimal is not None:
            raise invalid_request("Tiered prices have no `unit_amount`.", param="unit_amount")
        if params.get("transform_quantity"):
            raise invalid_request(
                "`transform_quantity` cannot be combined with `tiers`.", param="transform_quantity"
            )
    elif tiers or params.get("tiers_mode"):
        raise invalid_request(
            "`tiers` can only be set when `billing_scheme` is `tiered`.", param="tiers"
        )
    elif unit_decimal is None:
        raise invalid_request(
            "One of unit_amount, unit_amount_decimal or custom_unit_amount is required.",
            code="parameter_missing",
            param="unit_amount",
        )
    recurring = _read_recurring(account, params.get("recurring"))
    product_id = params.get("product")
    if product_id is not None:
        account.get("prod", product_id, param="product")
    elif params.get("product_data") is not None:
        product_id = create_product(account, {**params["product_data"]})["id"]
    else:
        raise invalid_request(
            "You must pass one of product or product_data.",
            code="parameter_missing",
            param="product",
        )
    currency = params["currency"].lower()
    tax_behavior = params.get("tax_behavior") or "unspecified"
    main: Json = {
        "currency": currency,
        "custom_unit_amount": None,
        "tax_behavior": tax_behavior,
        "tiers": tiers or None,
        "unit_amount": unit,
        "unit_amount_decimal": unit_decimal,
    }
    options = _read_currency_options(params, main, billing_scheme)
    price: Json = {
        "id": account.new_id("price", 24),
        "object": "price",
        "active": params.get("active", True),
        "billing_scheme": billing_scheme,
        "created": account.now(),
        "currency": currency,
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": _take_lookup_key(account, params),
        "metadata": merge_metadata({}, params.get("metadata")),
        "nickname": params.get("nickname"),
        "product": product_id,
        "recurring": recurring,
        "tax_behavior": tax_behavior,
        "tiers_mode": params.get("tiers_mode"),
        "transform_quantity": params.get("transform_quantity"),
        "type": "one_time" if recurring is None else "recurring",
        "unit_amount": unit,
        "unit_amount_decimal": unit_decimal,
        "_tiers": tiers or None,
        "_currency_options": options,
    }
    account.add("price", price)
    account.emit("price.created", "price", price)
    return account.render("price", price)


@route("GET", "/v1/prices", "PriceListParams")
def list_prices(account: Account, params: Params) -> Json:
    """GET /v1/prices."""
    recurring = params.get("recurring") or {}
    found = [
        price
        for price in account.store("price").values()
        if all(params.get(key) in (None, price[key]) for key in ("active", "currency", "type"))
        and params.get("product") in (None, price["product"])
        and (params.get("lookup_keys") is None or price["lookup_key"] in params["lookup_keys"])
        and all((price["recurring"] or {}).get(key) == want for key, want in recurring.items())
        and created_within(price, params.get("created"))
    ]
    return page(account, "price", found, params, "/v1/prices")


@route("GET", "/v1/prices/{}", "PriceRetrieveParams")
def retrieve_price(account: Account, _params: Params, price_id: str) -> Json:
    """GET /v1/prices/:id."""
    return account.render("price", account.get("price", price_id))


@route("POST", "/v1/prices/{}", "PriceUpdateParams")
def update_price(account: Account, params: Params, price_id: str) -> Json:
    """POST /v1/prices/:id: amounts never change, only what describes them."""
    price = account.get("price", price_id)
    before = account.render("price", price)
    for key in ("active", "nickname"):
        if key in params:
            price[key] = params[key] if params[key] != "" else None
    if "lookup_key" in params and params["lookup_key"] != price["lookup_key"]:
        price["lookup_key"] = _take_lookup_key(account, params)
    if "metadata" in params:
        price["metadata"] = merge_metadata(price["metadata"], params["metadata"])
    account.emit_update("price.updated", "price", price, before)
    return account.render("price", price)


def billing_view(price: Json) -> Json:
    """The stored price as the billing arithmetic reads it: amounts of every currency."""
    return {
        "currency": price["currency"],
        "billing_scheme": price["billing_scheme"],
        "tiers_mode": price["tiers_mode"],
        "transform_quantity": price["transform_quantity"],
        "tiers": price["_tiers"],
        "unit_amount_decimal": price["unit_amount_decimal"],
        "currency_options": price["_currency_options"],
    }
